//! Values of `--port`.

use std::{fmt, num::NonZeroU16, str::FromStr};

/// `--port LOCAL[:PORT|NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The port of the process at the workstation.
    pub local: NonZeroU16,
    /// The port of the workload.
    pub wanted: WantedPort,
}

/// How a user names a port of a workload: as a service or as a container calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedPort {
    /// Not at all: the only one.
    Only,
    /// By number.
    Number(NonZeroU16),
    /// By name.
    Name(PortName),
}

/// A name of a port, as Kubernetes allows it to services: a label of RFC 1123, at most 63 lower-case
/// letters, digits and hyphens (`ValidateServicePort` of `pkg/apis/core/validation`), with a letter,
/// or else it is a number here.
///
/// Containers have a stricter rule, so that theirs are all among these: an IANA_SVC_NAME (RFC 6335
/// section 5.1) of at most 15 characters, with a letter, and no two hyphens together
/// (`IsValidPortName` of k8s.io/apimachinery).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName(String);

/// A value of `--port` that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The part before the colon.
    #[error(
        "--port {text:?} does not begin with a port of this workstation: give LOCAL or LOCAL:PORT \
         with a number from 1 to 65535, as in --port 8080:http"
    )]
    Local {
        /// The whole value.
        text: String,
    },
    /// The part behind the colon is a number out of range.
    #[error("--port {text:?} names port {number:?} of the workload: ports are from 1 to 65535")]
    Number {
        /// The whole value.
        text: String,
        /// The part behind the colon.
        number: String,
    },
    /// The part behind the colon is neither a number nor a name.
    #[error(
        "--port {text:?} names no port of the workload behind the colon: give its number, or its \
         name of lower-case letters, digits and hyphens"
    )]
    Name {
        /// The whole value.
        text: String,
    },
    /// `8080:80/UDP`
    #[error(
        "--port {text:?} has a protocol: tp intercepts TCP ports so far, leave /{protocol} out"
    )]
    Protocol {
        /// The whole value.
        text: String,
        /// The part behind the slash.
        protocol: String,
    },
    /// One workstation port is given twice.
    #[error(
        "--port {local} is given twice: each port of the workload needs a local port of its own"
    )]
    LocalTwice {
        /// The local port.
        local: NonZeroU16,
    },
}

/// Checks what no single value shows: that no local port is given twice.
pub fn check_all(mappings: &[PortMapping]) -> Result<(), PortError> {
    for (at, mapping) in mappings.iter().enumerate() {
        let local = mapping.local;
        if mappings.iter().take(at).any(|other| other.local == local) {
            return Err(PortError::LocalTwice { local });
        }
    }

    Ok(())
}

impl FromStr for PortMapping {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let whole = || text.to_owned();
        if let Some((_, protocol)) = text.split_once('/') {
            return Err(PortError::Protocol {
                text: whole(),
                protocol: protocol.to_owned(),
            });
        }
        let (local, wanted) = match text.split_once(':') {
            Some((local, wanted)) => (local, Some(wanted)),
            None => (text, None),
        };
        let local = number(local).ok_or_else(|| PortError::Local { text: whole() })?;
        let wanted = match wanted {
            None => WantedPort::Only,
            Some(wanted) if is_digits(wanted) => {
                WantedPort::Number(number(wanted).ok_or_else(|| PortError::Number {
                    text: whole(),
                    number: wanted.to_owned(),
                })?)
            }
            Some(wanted) => WantedPort::Name(
                PortName::new(wanted).ok_or_else(|| PortError::Name { text: whole() })?,
            ),
        };

        Ok(Self { local, wanted })
    }
}

impl PortName {
    fn new(text: &str) -> Option<Self> {
        let has_letter = text.contains(|c: char| c.is_ascii_lowercase());

        (super::is_label(text) && has_letter).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Digits alone: `u16::from_str` would take a plus.
fn number(text: &str) -> Option<NonZeroU16> {
    is_digits(text).then(|| text.parse().ok()).flatten()
}

/// As it is given to `--port` behind the colon.
impl fmt::Display for WantedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => f.write_str("the only port"),
            Self::Number(number) => write!(f, "port {number}"),
            Self::Name(name) => write!(f, "port {}", name.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (u16, String) {
        let mapping: PortMapping = text.parse().unwrap();

        (mapping.local.get(), mapping.wanted.to_string())
    }

    fn refused(text: &str) -> String {
        text.parse::<PortMapping>().unwrap_err().to_string()
    }

    #[test]
    fn a_port_is_named_by_number_by_name_or_not_at_all() {
        assert_eq!(parsed("8080"), (8080, "the only port".to_owned()));
        assert_eq!(parsed("8080:80"), (8080, "port 80".to_owned()));
        assert_eq!(parsed("65535:http"), (65535, "port http".to_owned()));
        assert_eq!(parsed("1:8080-tcp"), (1, "port 8080-tcp".to_owned()));
    }

    #[test]
    fn a_value_that_is_not_understood_is_answered_with_what_to_do() {
        assert_eq!(
            refused("http"),
            "--port \"http\" does not begin with a port of this workstation: give LOCAL or \
             LOCAL:PORT with a number from 1 to 65535, as in --port 8080:http"
        );
        assert_eq!(
            refused("8080:70000"),
            "--port \"8080:70000\" names port \"70000\" of the workload: ports are from 1 to 65535"
        );
        assert_eq!(
            refused("8080:HTTP"),
            "--port \"8080:HTTP\" names no port of the workload behind the colon: give its number, \
             or its name of lower-case letters, digits and hyphens"
        );
        assert_eq!(
            refused("53:53/UDP"),
            "--port \"53:53/UDP\" has a protocol: tp intercepts TCP ports so far, leave /UDP out"
        );
        for text in ["", "0", ":80", "+1:80", "-1", "65536", " 80", "8080 "] {
            assert!(refused(text).contains("does not begin with"), "{text}");
        }
        for text in ["1:", "1:-a", "1:a-", "1:a_b", "1:1:1", "1:-1", "1:+1"] {
            assert!(refused(text).contains("names no port"), "{text}");
        }
        assert!(refused("1:0").contains("from 1 to 65535"));
    }

    #[test]
    fn every_name_that_a_container_or_a_service_can_have_is_a_name() {
        for name in [
            "http",
            "a23456789012345",
            "8080-tcp",
            "a--b",
            &"a".repeat(63),
        ] {
            assert_eq!(
                PortName::new(name).as_ref().map(PortName::as_str),
                Some(name)
            );
        }
        for name in ["", "80", "-a", "a-", "HTTP", "a.b", &"a".repeat(64)] {
            assert_eq!(PortName::new(name), None, "{name}");
        }
    }

    #[test]
    fn a_local_port_serves_one_port_of_the_workload() {
        let all = |texts: [&str; 3]| {
            let mappings = texts.map(|text| text.parse().unwrap());
            check_all(&mappings).map_err(|error| error.to_string())
        };

        assert_eq!(all(["1:80", "2:81", "3"]), Ok(()));
        assert_eq!(
            all(["1:80", "2:81", "1:82"]),
            Err(
                "--port 1 is given twice: each port of the workload needs a local port of its own"
                    .to_owned()
            )
        );
    }
}

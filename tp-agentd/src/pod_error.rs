//! The error of a request, as it is sent to the agent.

use std::{error::Error, io};

use rustix::{io::Errno, thread::CapabilitySet};
use tp_agent_api::{AgentRefusal, AgentReply};
use tp_ebpf_loader::{LoadError, MapError};

use crate::powers::lacking;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct PodError {
    kind: AgentRefusal,
    message: String,
}

impl PodError {
    pub(crate) fn new(kind: AgentRefusal, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(AgentRefusal::Invalid, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(AgentRefusal::NotFound, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(AgentRefusal::Unsupported, message)
    }

    /// A step that failed for another reason than what the request is about. `needed` are the
    /// capabilities that it takes.
    pub(crate) fn step(what: &str, error: &io::Error, needed: CapabilitySet) -> Self {
        let advice = match is_denied(error) {
            true => format!(": {}", lacking(needed)),
            false => String::new(),
        };

        Self::new(
            AgentRefusal::Failed,
            format!("cannot {what}: {error}{advice}"),
        )
    }

    pub(crate) fn into_reply(self) -> AgentReply {
        AgentReply::Refused {
            kind: self.kind,
            message: self.message,
        }
    }
}

impl From<anyhow::Error> for PodError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(AgentRefusal::Failed, format!("{error:#}"))
    }
}

impl From<io::Error> for PodError {
    fn from(error: io::Error) -> Self {
        Self::new(AgentRefusal::Failed, error.to_string())
    }
}

impl From<LoadError> for PodError {
    fn from(error: LoadError) -> Self {
        let mut is_judged = false;
        if let LoadError::Rejected { program, log, .. } = &error {
            tracing::warn!(program, log, "Program is not loaded");
            // The verifier had its say, and not the check of capabilities before it.
            is_judged = !log.trim().is_empty();
        }
        let errno = errno_in(&error);
        let is_ours = matches!(error, LoadError::NoObject | LoadError::Missing { .. });
        let message = format!("{:#}", anyhow::Error::from(error));
        let is_denied = matches!(errno, Some(Errno::ACCESS | Errno::PERM));
        if is_denied && !is_judged {
            let advice = lacking(CapabilitySet::BPF | CapabilitySet::NET_ADMIN);
            return Self::new(AgentRefusal::Failed, format!("{message}: {advice}"));
        }
        if is_ours || errno.is_some_and(is_want) {
            return Self::new(AgentRefusal::Failed, message);
        }

        Self::unsupported(message)
    }
}

impl From<MapError> for PodError {
    fn from(error: MapError) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// Returns whether what was looked at has gone.
pub(crate) fn has_ended(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

pub(crate) fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Of memory or descriptors, at the moment.
fn is_want(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN
    )
}

/// What the kernel said, at the bottom of an error.
fn errno_in(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut next = Some(error);
    while let Some(error) = next {
        let found = error.downcast_ref().and_then(Errno::from_io_error);
        if found.is_some() {
            return found;
        }
        next = error.source();
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(errno: Errno, log: &str) -> AgentRefusal {
        PodError::from(LoadError::Rejected {
            program: "p",
            source: errno.into(),
            log: log.into(),
        })
        .kind
    }

    #[test]
    fn only_what_the_kernel_cannot_do_is_unsupported() {
        assert_eq!(kind(Errno::INVAL, ""), AgentRefusal::Unsupported);
        assert_eq!(kind(Errno::ACCESS, "R1 is bad"), AgentRefusal::Unsupported);
        for errno in [Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert_eq!(kind(errno, ""), AgentRefusal::Failed, "{errno}");
        }
    }
}

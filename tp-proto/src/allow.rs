//! The values of `--allow`, of `tp install` and of the manager.

use std::str::FromStr;

/// Destinations that belong to the cluster itself, and that users reach only where the
/// administrator allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// Addresses of nodes, and of pods that share them.
    Nodes,
    /// The API server's Service.
    ApiServer,
}

impl Allow {
    /// In the order of the help.
    pub const ALL: [Self; 2] = [Self::Nodes, Self::ApiServer];

    /// The value of the flag.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::ApiServer => "api-server",
        }
    }
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|it| it.as_str() == text);

        named.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for allow in Allow::ALL {
            assert_eq!(allow.as_str().parse(), Ok(allow));
        }
        assert_eq!(
            "pods".parse::<Allow>(),
            Err("expected one of nodes, api-server".into())
        );
    }
}

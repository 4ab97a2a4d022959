//! The error of a request, as it is sent to the agent.

use std::io;

use tp_agent_api::{AgentRefusal, AgentReply};
use tp_ebpf_loader::{LoadError, MapError};

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
        if let LoadError::Rejected { program, log, .. } = &error {
            tracing::warn!(program, log, "Program is not loaded");
        }

        Self::unsupported(format!("{:#}", anyhow::Error::from(error)))
    }
}

impl From<MapError> for PodError {
    fn from(error: MapError) -> Self {
        anyhow::Error::from(error).into()
    }
}

//! The error of a request, as it is sent to the session.

use std::io;

use tp_ebpf_loader::{LoadError, MapError};
use tp_root_api::{RefusedKind, Reply};

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RequestError {
    pub(crate) kind: RefusedKind,
    message: String,
}

impl RequestError {
    pub(crate) fn new(kind: RefusedKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Invalid, message)
    }

    pub(crate) fn permission(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Permission, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(RefusedKind::Unsupported, message)
    }

    pub(crate) fn into_reply(self) -> Reply {
        Reply::Refused {
            kind: self.kind,
            message: self.message,
        }
    }
}

impl From<anyhow::Error> for RequestError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(RefusedKind::Failed, format!("{error:#}"))
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::new(RefusedKind::Failed, error.to_string())
    }
}

impl From<LoadError> for RequestError {
    fn from(error: LoadError) -> Self {
        if let LoadError::Rejected { program, log, .. } = &error {
            tracing::warn!(program, log, "Program is not loaded");
        }
        Self::unsupported(format!("{:#}", anyhow::Error::from(error)))
    }
}

impl From<MapError> for RequestError {
    fn from(error: MapError) -> Self {
        anyhow::Error::from(error).into()
    }
}

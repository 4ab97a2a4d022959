//! Who may connect, as the manager is asked.

use crate::keys::{KeyHash, SessionRef};

/// Why a session is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A sentence for the user, sent to the client.
    pub reason: String,
    /// The answer may change within moments (the `Session` was made just now and has not been
    /// seen yet): the question is repeated for up to two seconds.
    pub retry: bool,
}

impl Refusal {
    /// A refusal for good.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: false,
        }
    }

    /// A refusal whose question is repeated.
    pub fn for_now(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: true,
        }
    }
}

/// Decides who may connect. Both questions are asked often and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Whether a session of this name exists, asked before any QUIC byte is read.
    ///
    /// # Errors
    ///
    /// The refusal, which the client is told on its byte stream.
    fn known(&self, session: &SessionRef) -> Result<(), Refusal>;

    /// Whether `key` is the session's key, asked once the client has proven that it holds the key,
    /// before anything that it sends is read; of what it sends until then QUIC keeps 16 KiB. A refusal
    /// closes the connection with
    /// [`CloseCode::NotAdmitted`](crate::CloseCode::NotAdmitted); it is not asked again.
    ///
    /// # Errors
    ///
    /// The refusal, which the client is told.
    fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal>;
}

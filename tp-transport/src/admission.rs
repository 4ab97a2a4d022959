//! The manager's decision who may connect.

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

/// Decides who may connect. Both methods are called often and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Checks that a session of this name exists, before any QUIC byte is read.
    ///
    /// # Errors
    ///
    /// The refusal, sent to the client on its byte stream.
    fn known(&self, session: &SessionRef) -> Result<(), Refusal>;

    /// Checks that `key` is the session's key, once the client has proven that it holds the key and
    /// before anything that it sends is read; until then QUIC buffers at most 16 KiB of that. A refusal
    /// closes the connection with
    /// [`CloseCode::NotAdmitted`](crate::CloseCode::NotAdmitted); it is not asked again.
    ///
    /// # Errors
    ///
    /// The refusal, sent to the client.
    fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal>;
}

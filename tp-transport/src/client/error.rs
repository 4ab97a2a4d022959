//! The errors of connecting and opening.

use std::{io, time::Duration};

use quinn::ConnectionError;

use crate::{
    flow::FlowError,
    keys::{AnotherKey, KeyError},
    status::ClosedReason,
};

/// Why there is no tunnel, or no other byte stream for one.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No certificate can be made of the key, or the session's name is malformed.
    #[error("cannot use the session's key")]
    Key(#[from] KeyError),
    /// The machine provides no UDP socket.
    #[error("cannot set the QUIC endpoint up")]
    Endpoint(#[source] io::Error),
    /// The manager does not admit the session (yet), for this reason: a sentence for the user.
    #[error("the traffic manager refuses the session: {0}")]
    Refused(String),
    /// The other end has another key than the pinned one.
    #[error(transparent)]
    AnotherKey(AnotherKey),
    /// The other end breaks the protocol; the source is QUIC's error.
    #[error("the handshake with the traffic manager failed: {0}")]
    Handshake(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The byte stream has ended before the manager's answer.
    #[error("the stream to the traffic manager ended during the handshake")]
    LinkEnded,
    /// There was no answer for so long.
    #[error("the traffic manager does not answer within {0:?}")]
    TimedOut(Duration),
}

/// Why a stream of the tunnel was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The tunnel has ended.
    #[error("the tunnel is closed: {0}")]
    Closed(ClosedReason),
    /// UDP does not answer, for this reason; only with [`PathChoice::UdpOnly`](crate::PathChoice::UdpOnly).
    #[error("UDP to the traffic manager does not work: {0}")]
    NoUdp(String),
    /// The stream failed before its verdict.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// The manager refuses a control stream, for this reason.
    #[error("the traffic manager refuses the control stream: {0}")]
    Refused(String),
}

/// The reason for a failed handshake; `another_key` is set if this end has rejected the manager's.
pub(super) fn handshake_error(
    error: ConnectionError,
    another_key: Option<&AnotherKey>,
) -> ConnectError {
    match (error, another_key) {
        (_, Some(another_key)) => ConnectError::AnotherKey(*another_key),
        (ConnectionError::ApplicationClosed(close), None) => {
            ConnectError::Refused(String::from_utf8_lossy(&close.reason).into_owned())
        }
        (error, None) => ConnectError::Handshake(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ConnectionClose, TransportErrorCode};

    use super::*;

    #[test]
    fn a_refusal_within_tls_by_an_earlier_manager_shows_its_sentence() {
        let close = ConnectionClose {
            // handshake_failure (RFC 8446, section 6.2)
            error_code: TransportErrorCode::crypto(40),
            frame_type: None,
            reason: "other error: tp refuses: the Session has ended".into(),
        };

        let error = handshake_error(ConnectionError::ConnectionClosed(close), None);

        assert!(matches!(error, ConnectError::Handshake(_)), "{error:?}");
        let shown = error.to_string();
        assert!(
            shown.ends_with("tp refuses: the Session has ended"),
            "{shown}"
        );
    }
}

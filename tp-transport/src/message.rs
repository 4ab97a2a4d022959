//! Messages on streams, each behind its length, a big-endian u16; and the errors of a stream.

use std::io;

use bytes::Bytes;
use prost::Message;
use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, WriteError};

use crate::codes::ResetCode;

/// Longest message on any stream, in bytes.
const MAX_MESSAGE: usize = 2048;
/// Control streams go before flows, so that bulk transfers cannot starve them.
pub(crate) const CONTROL_PRIORITY: i32 = 10;

/// The error of a flow, or of one direction of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The other end reset its direction, or stopped reading ours.
    #[error("the flow was reset by the other end")]
    Reset(ResetCode),
    /// The connection has ended, and with it all flows.
    #[error("the tunnel is gone")]
    TunnelLost,
    /// This end has finished, reset or stopped it before.
    #[error("the flow was ended here already")]
    Closed,
    /// A message is too long, cut off or not to be decoded.
    #[error("the other end broke the flow protocol: {0}")]
    Malformed(&'static str),
}

impl From<ReadError> for FlowError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into()),
            ReadError::ConnectionLost(_) => Self::TunnelLost,
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<WriteError> for FlowError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code.into()),
            WriteError::ConnectionLost(_) => Self::TunnelLost,
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ConnectionError> for FlowError {
    fn from(_: ConnectionError) -> Self {
        Self::TunnelLost
    }
}

impl From<FlowError> for io::Error {
    fn from(error: FlowError) -> Self {
        let kind = match error {
            FlowError::Reset(_) => io::ErrorKind::ConnectionReset,
            FlowError::TunnelLost => io::ErrorKind::ConnectionAborted,
            FlowError::Closed => io::ErrorKind::NotConnected,
            FlowError::Malformed(_) => io::ErrorKind::InvalidData,
        };

        Self::new(kind, error)
    }
}

/// A message behind its length.
pub(crate) fn frame(message: &impl Message) -> Result<Bytes, FlowError> {
    let length = message.encoded_len();
    let prefix = u16::try_from(length)
        .ok()
        .filter(|_| length <= MAX_MESSAGE)
        .ok_or(FlowError::Malformed("a message is too long to be sent"))?;
    let mut frame = Vec::with_capacity(2 + length);
    frame.extend_from_slice(&prefix.to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());

    Ok(frame.into())
}

/// The reverse of [`frame`]; `None` if the message is too long.
pub(crate) async fn read_frame(stream: &mut RecvStream) -> Result<Option<Vec<u8>>, ReadExactError> {
    let mut prefix = [0; 2];
    stream.read_exact(&mut prefix).await?;
    let length = usize::from(u16::from_be_bytes(prefix));
    if length > MAX_MESSAGE {
        return Ok(None);
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;

    Ok(Some(frame))
}

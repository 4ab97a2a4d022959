//! Application error codes of RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE.

use quinn::VarInt;

/// Why one direction of a flow ended early: the code of RESET_STREAM and STOP_SENDING (RFC 9000,
/// sections 19.4 and 19.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCode {
    /// The TCP connection at the other end was reset by its peer. Code 1.
    Reset,
    /// The other end gave the flow up: its program stopped, or its splice was dropped. Code 2.
    Aborted,
    /// A code of a newer version.
    Other(u64),
}

impl From<ResetCode> for VarInt {
    fn from(code: ResetCode) -> Self {
        match code {
            ResetCode::Reset => Self::from_u32(1),
            ResetCode::Aborted => Self::from_u32(2),
            ResetCode::Other(code) => Self::from_u64(code).unwrap_or(Self::MAX),
        }
    }
}

impl From<VarInt> for ResetCode {
    fn from(code: VarInt) -> Self {
        match code.into_inner() {
            1 => Self::Reset,
            2 => Self::Aborted,
            code => Self::Other(code),
        }
    }
}

/// Why the whole connection was closed: the code of CONNECTION_CLOSE of type 0x1d (RFC 9000, section
/// 19.19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The user disconnected. Code 0.
    Quit,
    /// The `Session` object is gone, or its time is over: a new one may be made. Code 1.
    SessionGone,
    /// The `Session` is not admitted, or lost its admission. Code 2.
    NotAdmitted,
    /// This program ends; another replica may serve. Code 3.
    Shutdown,
    /// The other end does not keep to the protocol. Code 4.
    Protocol,
    /// The `Session` object of a connection was deleted, to end it. Code 5.
    Deleted,
    /// A code of a newer version.
    Other(u64),
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::Quit => Self::from_u32(0),
            CloseCode::SessionGone => Self::from_u32(1),
            CloseCode::NotAdmitted => Self::from_u32(2),
            CloseCode::Shutdown => Self::from_u32(3),
            CloseCode::Protocol => Self::from_u32(4),
            CloseCode::Deleted => Self::from_u32(5),
            CloseCode::Other(code) => Self::from_u64(code).unwrap_or(Self::MAX),
        }
    }
}

impl From<VarInt> for CloseCode {
    fn from(code: VarInt) -> Self {
        match code.into_inner() {
            0 => Self::Quit,
            1 => Self::SessionGone,
            2 => Self::NotAdmitted,
            3 => Self::Shutdown,
            4 => Self::Protocol,
            5 => Self::Deleted,
            code => Self::Other(code),
        }
    }
}

//! What a socket of a session stands for: the client of the connection that was intercepted.

use crate::Address;

/// The value of the map `CLIENTS`, kept with a socket that a session connects to a local process. It
/// goes with the socket, whatever process dies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShownClient {
    /// The id of the session, in the machine's byte order.
    pub session: u32,
    /// The slot of the session, in the machine's byte order.
    pub slot: u32,
    /// The address that the local process is shown as its peer.
    pub address: Address,
    /// In network order.
    pub port: [u8; 2],
    _zero: [u8; 2],
}

impl ShownClient {
    /// The client at this address and port, both in network order.
    pub const fn new(session: u32, slot: u32, address: Address, port: [u8; 2]) -> Self {
        Self {
            session,
            slot,
            address,
            port,
            _zero: [0; 2],
        }
    }
}

const _: () = assert!(size_of::<ShownClient>() == 28);

//! Decides which path carries the tunnel, and how datagrams are handed to it.
//!
//! A client has two paths to its replica: a byte stream through the API server (the stream path) and UDP
//! straight to the pod (the UDP path). [`monitor`] chooses between them from probes, [`batching`] finds out
//! whether several datagrams may be sent by UDP at once. Both take the time and what arrived as
//! arguments, and return what is to be sent: the caller has the sockets, the keys and the clock.

pub mod batching;
pub mod monitor;

/// Largest datagram on either path, in bytes of UDP payload: an Ethernet frame less the headers of
/// IPv6, UDP and a tunnel around them.
pub const FULL_SIZE: u16 = 1452;
/// The datagram that every path must carry, in bytes of UDP payload (RFC 9000, section 14).
pub const BASE_SIZE: u16 = 1200;

/// One of the two paths between the ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// The byte stream through the API server.
    Stream,
    /// UDP straight to the replica.
    Udp,
}

/// The paths that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathChoice {
    /// Start on the stream, move to UDP when it answers, and back when it falls silent.
    #[default]
    Auto,
    /// The handshake and the control stream use the stream until UDP answers; dials wait for UDP,
    /// and no flow ever returns to the stream.
    UdpOnly,
    /// No UDP socket at all.
    StreamOnly,
}

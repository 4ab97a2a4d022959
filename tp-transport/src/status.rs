//! What `tp status` and the manager's log say about a tunnel.

use std::{net::SocketAddr, time::Duration};

use crate::codes::CloseCode;

/// One of the two ways between the ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// T: the byte stream through the API server.
    Stream,
    /// U: UDP straight to the replica.
    Udp,
}

/// Which path carries the flows, and why not the better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    pub path: PathKind,
    /// Why UDP is not used; empty if it is.
    pub reason: String,
    /// The UDP address in use.
    pub remote: Option<SocketAddr>,
    /// How often the connection moved from one path to the other.
    pub switches: u64,
}

/// Counters of one tunnel since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// Round-trip time of the QUIC connection.
    pub rtt: Duration,
    /// Bytes in QUIC datagrams.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub lost_packets: u64,
    /// Largest QUIC datagram that is sent.
    pub mtu: u16,
    /// Sizes that the kernel granted for the UDP socket, in bytes of payload; 0 without one.
    pub udp_receive_buffer: u64,
    pub udp_send_buffer: u64,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosedReason {
    #[error("the replica does not answer on any path")]
    ReplicaGone,
    #[error("the other end closed the tunnel: {reason}")]
    Peer { code: CloseCode, reason: String },
    #[error("the tunnel was closed here")]
    Local,
    #[error("the tunnel broke: {0}")]
    Broken(String),
}

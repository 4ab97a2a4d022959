//! The state of a tunnel for `tp status` and the manager's log.

use std::{net::SocketAddr, time::Duration};

use quinn::{Connection, ConnectionError};
use tp_core::path::PathKind;

use crate::{codes::CloseCode, credit::Ledger, mux::udp::Udp};

/// The path that carries the flows, and the reason if that is not UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// The path in use.
    pub path: PathKind,
    /// Why UDP is not used; empty if it is.
    pub reason: String,
    /// The UDP address in use.
    pub remote: Option<SocketAddr>,
    /// Why datagrams are sent by UDP one by one, which takes more processor time, by the client's
    /// measurements; empty if they are not.
    pub batching: &'static str,
    /// The number of moves from one path to the other.
    pub switches: u64,
}

/// Counters of one tunnel since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// Round-trip time of the QUIC connection.
    pub rtt: Duration,
    /// Bytes in QUIC datagrams sent.
    pub bytes_sent: u64,
    /// Bytes in QUIC datagrams received.
    pub bytes_received: u64,
    /// QUIC packets that were declared lost (RFC 9002, section 6.1).
    pub lost_packets: u64,
    /// Largest QUIC datagram that is sent, in bytes of UDP payload.
    pub mtu: u16,
    /// Size that the kernel granted for the receive buffer of the UDP socket, in bytes of payload; 0
    /// without a socket.
    pub udp_receive_buffer: u64,
    /// The same of its send buffer.
    pub udp_send_buffer: u64,
    /// Bytes granted to the other end's flows and not passed on: this end may have to buffer them.
    pub credit_held: u64,
    /// Flows that may send nothing until the other end's readers have read.
    pub waiting_flows: u64,
}

impl TunnelStats {
    pub(crate) fn of(connection: &Connection, ledger: &Ledger, udp: Option<&Udp>) -> Self {
        let stats = connection.stats();

        Self {
            rtt: stats.path.rtt,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
            udp_receive_buffer: udp.map_or(0, Udp::receive_buffer),
            udp_send_buffer: udp.map_or(0, Udp::send_buffer),
            credit_held: ledger.held(),
            waiting_flows: ledger.waiting_flows(),
        }
    }
}

/// Why a tunnel ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosedReason {
    /// Neither the byte stream nor UDP answers.
    #[error("the replica does not answer on any path")]
    ReplicaGone,
    /// The other end closed it.
    #[error("the other end closed the tunnel: {reason}")]
    Peer {
        /// Why, for the program.
        code: CloseCode,
        /// Why, as a sentence for the user.
        reason: String,
    },
    /// This end closed it.
    #[error("the tunnel was closed here")]
    Local,
    /// QUIC gave the connection up: the other end breaks the protocol.
    #[error("the tunnel broke: {0}")]
    Broken(#[source] ConnectionError),
}

impl From<ConnectionError> for ClosedReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::Local,
            ConnectionError::ApplicationClosed(close) => Self::Peer {
                code: close.error_code.into(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            ConnectionError::TimedOut | ConnectionError::Reset => Self::ReplicaGone,
            error => Self::Broken(error),
        }
    }
}

//! Ties a TCP connection to a flow: both directions, every way to end.

use std::sync::atomic::AtomicU64;

use tokio::net::TcpStream;

use crate::{codes::ResetCode, flow::Flow};

/// Bytes that went through, shared by any number of splices.
#[derive(Debug, Default)]
pub struct SpliceCounters {
    /// From TCP into the tunnel.
    pub sent: AtomicU64,
    /// From the tunnel into TCP.
    pub received: AtomicU64,
}

/// How a splice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both ends half-closed and everything is acknowledged.
    Finished,
    /// The TCP connection was reset or failed.
    TcpReset,
    /// The other end of the tunnel reset the flow; so was the TCP connection.
    FlowReset(ResetCode),
    /// The tunnel is gone; the TCP connection was reset.
    TunnelLost,
}

/// Copies both directions until both have ended. A half-close becomes a FIN and the reverse, a
/// reset becomes a reset, and a lost tunnel, or dropping this future, resets the TCP connection:
/// a truncated transfer never ends cleanly.
pub async fn splice(tcp: TcpStream, flow: Flow, counters: &SpliceCounters) -> SpliceEnd {
    let _ = (tcp, flow, counters);
    std::future::pending().await
}

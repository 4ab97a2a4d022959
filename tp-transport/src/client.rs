//! The session's end of the tunnel.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tp_proto::tunnel::Outcome;

use crate::{
    codes::CloseCode,
    flow::{Flow, FlowError, FlowIo},
    keys::{Identity, KeyError, KeyHash, SessionRef},
    status::{ClosedReason, PathStatus, TunnelStats},
};

/// Which paths may be used.
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

pub struct TunnelConfig {
    pub identity: Identity,
    pub session: SessionRef,
    /// The key that the manager must prove.
    pub manager_key: KeyHash,
    pub choice: PathChoice,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot use the session's key")]
    Key(#[from] KeyError),
    #[error("cannot open a UDP socket")]
    Udp(#[source] std::io::Error),
    /// The manager does not admit the session (yet).
    #[error("the traffic manager refuses the session: {0}")]
    Refused(String),
    /// The other end has another key than the pinned one, or breaks the protocol.
    #[error("the handshake with the traffic manager failed: {0}")]
    Handshake(String),
    #[error("the stream to the traffic manager ended during the handshake")]
    LinkEnded,
    #[error("the traffic manager does not answer within {0:?}")]
    TimedOut(std::time::Duration),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the tunnel is closed: {0}")]
    Closed(ClosedReason),
    /// Only with [`PathChoice::UdpOnly`].
    #[error("UDP to the traffic manager does not work: {0}")]
    NoUdp(String),
    #[error(transparent)]
    Flow(#[from] FlowError),
    #[error("the traffic manager refuses the control stream: {0}")]
    Refused(String),
}

/// How a dial ended at the far side.
#[derive(Debug)]
pub enum Dialed {
    Connected(Flow),
    Refused { outcome: Outcome, reason: String },
}

/// The tunnel; clones share it. It ends with [`Tunnel::close`] or its last clone.
#[derive(Clone)]
pub struct Tunnel {
    path: watch::Receiver<PathStatus>,
}

impl Tunnel {
    /// Handshake over `link`, a byte stream to the manager's port for path T.
    pub async fn connect(
        link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        config: TunnelConfig,
    ) -> Result<Self, ConnectError> {
        let _ = (link, config);
        std::future::pending().await
    }

    /// Opens the control stream; [`FlowIo::into_channel`] makes a gRPC channel of it.
    pub async fn open_control(&self) -> Result<FlowIo, OpenError> {
        std::future::pending().await
    }

    /// Asks the manager to connect to `target` and waits for its verdict, which the caller
    /// bounds. Dropping the future gives the dial up at the far side too.
    pub async fn dial(&self, target: SocketAddr) -> Result<Dialed, OpenError> {
        let _ = target;
        std::future::pending().await
    }

    /// Where the replica may be reached by UDP, best first. Probing starts in the background.
    pub fn set_candidates(&self, candidates: Vec<SocketAddr>) {
        let _ = candidates;
    }

    /// Resolves when the byte stream of path T has ended; a new one may be given to
    /// [`Tunnel::replace_link`].
    pub async fn link_ended(&self) {
        std::future::pending().await
    }

    /// Replaces the byte stream of path T by a new one to the same replica.
    pub async fn replace_link(
        &self,
        link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), ConnectError> {
        let _ = link;
        std::future::pending().await
    }

    pub fn path(&self) -> watch::Receiver<PathStatus> {
        self.path.clone()
    }

    pub fn stats(&self) -> TunnelStats {
        TunnelStats::default()
    }

    /// Resolves when the tunnel has ended.
    pub async fn closed(&self) -> ClosedReason {
        std::future::pending().await
    }

    /// Tells the manager and waits, with a bound, until it knows.
    pub async fn close(&self, code: CloseCode) {
        let _ = code;
    }
}

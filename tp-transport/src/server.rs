//! The manager's end of the tunnel.

use std::{io, net::UdpSocket, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use crate::{
    codes::CloseCode,
    flow::Accepted,
    keys::{Identity, KeyError, KeyHash, SessionRef},
    status::{ClosedReason, PathStatus, TunnelStats},
};

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
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: false,
        }
    }

    pub fn for_now(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: true,
        }
    }
}

/// Decides who may connect. Both questions are asked often and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Whether a session of this name exists, asked before any QUIC byte is read.
    fn known(&self, session: &SessionRef) -> Result<(), Refusal>;

    /// Whether `key` is the session's key, asked within the handshake. The client then proves
    /// that it holds the key.
    fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal>;
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot use the manager's key")]
    Key(#[from] KeyError),
    #[error("cannot set the QUIC endpoint up")]
    Endpoint(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the stream does not begin as tp's path T does")]
    NotOurs,
    #[error("the stream is silent")]
    TimedOut,
    #[error("the session is refused: {0}")]
    Refused(String),
    #[error("the stream failed")]
    Io(#[from] io::Error),
    #[error("the server has as many streams as it serves")]
    TooMany,
}

/// Serves any number of sessions over one UDP socket and their byte streams.
pub struct TunnelServer {
    admission: Arc<dyn Admission>,
}

impl TunnelServer {
    /// Without `udp`, all sessions stay on their byte streams.
    pub fn bind(
        udp: Option<UdpSocket>,
        identity: Identity,
        admission: Arc<dyn Admission>,
    ) -> Result<Arc<Self>, BindError> {
        let _ = (udp, identity);

        Ok(Arc::new(Self { admission }))
    }

    /// Serves a byte stream that was accepted on the port for path T, until it ends.
    pub async fn attach(
        &self,
        link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), AttachError> {
        let _ = (link, &self.admission);
        std::future::pending().await
    }

    /// The next session whose handshake is done and whose identity is verified; `None` once the
    /// server is closed.
    pub async fn accept(&self) -> Option<Peer> {
        std::future::pending().await
    }

    /// Closes every connection and waits, with a bound, until the clients know.
    pub async fn close(&self, code: CloseCode) {
        let _ = code;
    }
}

/// One connected session; clones share it.
#[derive(Clone)]
pub struct Peer {
    session: Arc<SessionRef>,
    key: KeyHash,
    path: watch::Receiver<PathStatus>,
}

impl Peer {
    pub fn session(&self) -> &SessionRef {
        &self.session
    }

    /// The key that the client proved.
    pub fn key(&self) -> KeyHash {
        self.key
    }

    /// The next stream that the session opened; `None` once the connection has ended.
    pub async fn accept(&self) -> Option<Accepted> {
        std::future::pending().await
    }

    pub fn close(&self, code: CloseCode, reason: &str) {
        let _ = (code, reason);
    }

    pub async fn closed(&self) -> ClosedReason {
        std::future::pending().await
    }

    pub fn path(&self) -> watch::Receiver<PathStatus> {
        self.path.clone()
    }

    pub fn stats(&self) -> TunnelStats {
        TunnelStats::default()
    }
}

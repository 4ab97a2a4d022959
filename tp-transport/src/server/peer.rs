//! One connected session, and the streams that it opens.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use quinn::Connection;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tp_proto::tunnel::Outcome;

use crate::{
    codes::CloseCode,
    credit::Ledger,
    flow::{self, Accepted, Dialed, FlowError, InterceptedFrom},
    keys::{KeyHash, SessionRef},
    mux::{
        Mux,
        server::{PeerPaths, ServerSide},
    },
    status::{ClosedReason, PathStatus, TunnelStats},
};

/// Of the wait until the session lets one more stream be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The session has as many intercepted connections as it takes.
const TOO_MANY: &str = "the workstation takes no more connections";

/// One connected session; clones share it. When the last clone is dropped, it is closed.
#[derive(Clone)]
pub struct Peer {
    pub(super) inner: Arc<PeerInner>,
}

pub(super) struct PeerInner {
    pub(super) session: SessionRef,
    pub(super) key: KeyHash,
    pub(super) connection: Connection,
    pub(super) ledger: Arc<Ledger>,
    pub(super) path: watch::Receiver<PathStatus>,
    pub(super) paths: Arc<PeerPaths>,
    /// Boxed, because a channel allocates 32 slots at once.
    pub(super) flows: Mutex<mpsc::Receiver<Box<Accepted>>>,
    pub(super) mux: Weak<Mux<ServerSide>>,
    pub(super) _keeper: AbortOnDropHandle<()>,
}

impl Drop for PeerInner {
    fn drop(&mut self) {
        self.connection.close(CloseCode::Shutdown.into(), b"");
    }
}

impl Peer {
    /// The session whose key the client has proven.
    pub fn session(&self) -> &SessionRef {
        &self.inner.session
    }

    /// The key that the client proved.
    pub fn key(&self) -> KeyHash {
        self.inner.key
    }

    /// The next stream that the session opened; `None` once the connection has ended.
    pub async fn accept(&self) -> Option<Accepted> {
        let accepted = self.inner.flows.lock().await.recv().await?;

        Some(*accepted)
    }

    /// Offers the session a connection that was intercepted, and waits for the verdict of its dial;
    /// the caller sets a limit, because a version without intercepts never answers. Dropping the
    /// future also cancels the dial at the workstation.
    ///
    /// # Errors
    ///
    /// [`FlowError`]. A workstation that refuses, or takes no more connections, is no error: see
    /// [`Dialed::Refused`].
    pub async fn open_intercepted(&self, from: &InterceptedFrom) -> Result<Dialed, FlowError> {
        let inner = &self.inner;
        let Ok(opened) = timeout(OPEN_TIMEOUT, inner.connection.open_bi()).await else {
            return Ok(Dialed::refused(Outcome::Exhausted, TOO_MANY));
        };
        let (send, recv) = opened?;

        flow::open_intercepted(send, recv, from, &inner.ledger).await
    }

    /// Ends the connection; `reason` is a sentence for the client's user.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.inner.connection.close(code.into(), reason.as_bytes());
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) -> ClosedReason {
        self.inner.connection.closed().await.into()
    }

    /// The path that the client uses.
    pub fn path(&self) -> watch::Receiver<PathStatus> {
        self.inner.path.clone()
    }

    /// Time since the client was last heard from: it probes each second, on any path.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.inner.paths.silent_ms())
    }

    /// Counters since the connection began.
    pub fn stats(&self) -> TunnelStats {
        let mux = self.inner.mux.upgrade();
        let udp = mux.as_ref().and_then(|mux| mux.udp());

        TunnelStats::of(&self.inner.connection, &self.inner.ledger, udp)
    }
}

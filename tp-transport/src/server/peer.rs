//! One connected session, and the streams that it opens.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use quinn::Connection;
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    codes::CloseCode,
    credit::Ledger,
    flow::{self, Accepted, FlowCount, FlowError},
    keys::{KeyHash, SessionRef},
    mux::{Mux, server::ServerSide},
    quic::FlowLimit,
    status::{ClosedReason, PathStatus, TunnelStats},
};

const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one session whose `Open` is being read.
const MAX_OPENING: usize = 1024;

/// Reads the `Open` of every stream, so that a slow one delays no other.
pub(super) async fn read_opens(
    connection: &Connection,
    ledger: &Arc<Ledger>,
    flows: mpsc::Sender<Box<Accepted>>,
) {
    let mut opening = JoinSet::new();
    let (mut limit, count) = (FlowLimit::new(), FlowCount::default());
    loop {
        let opened = tokio::select! {
            opened = connection.accept_bi(), if opening.len() < MAX_OPENING => opened,
            Some(_) = opening.join_next() => continue,
        };
        let Ok((send, recv)) = opened else {
            return;
        };
        // Streams whose task has not begun are not in `count` yet.
        limit.follow(connection, count.get() + opening.len() + 1);
        let (flows, ledger, count) = (flows.clone(), Arc::clone(ledger), count.clone());
        opening.spawn(async move {
            match timeout(OPEN_TIMEOUT, flow::accept(send, recv, &ledger, &count)).await {
                Ok(Ok(accepted)) => {
                    // Fails only if the peer is dropped.
                    let _ = flows.send(Box::new(accepted)).await;
                }
                Ok(Err(FlowError::TunnelLost)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "Stream not understood"),
                Err(_) => tracing::debug!("Stream did not say what it is for"),
            }
        });
    }
}

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

    /// Counters since the connection began.
    pub fn stats(&self) -> TunnelStats {
        let mux = self.inner.mux.upgrade();
        let udp = mux.as_ref().and_then(|mux| mux.udp());

        TunnelStats::of(&self.inner.connection, &self.inner.ledger, udp)
    }
}

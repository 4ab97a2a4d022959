//! The session's side of the socket: one server, two paths to it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, mpsc};
use tp_core::path::PathKind;
use tp_process::sync;

use crate::{
    congestion::PathEpoch,
    framed::Link,
    mux::{Answer, Route, Side},
    probe::{Probe, ProbeKeys, ProbeKind},
    quic::LOGICAL_SERVER,
};

/// Transmits of at least this size count as data; acknowledgements and keep-alives are smaller.
const DATA_SIZE: usize = 64;
/// Replies that may wait for the monitor; further ones are dropped, as in the network.
const MAX_REPLIES: usize = 64;

/// A genuine reply to a probe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeReply {
    pub(crate) from: SocketAddr,
    pub(crate) probe: Probe,
}

#[derive(Debug)]
pub(crate) struct ClientSide {
    epoch: Arc<PathEpoch>,
    /// True if several datagrams may be sent together by UDP.
    is_batched: AtomicBool,
    paths: RwLock<Paths>,
    keys: OnceLock<ProbeKeys>,
    replies: mpsc::Sender<ProbeReply>,
    is_busy: AtomicBool,
    busy: Notify,
}

#[derive(Debug)]
struct Paths {
    link: Arc<Link>,
    remote: Option<SocketAddr>,
    candidates: Vec<SocketAddr>,
}

impl ClientSide {
    pub(crate) fn new(
        epoch: Arc<PathEpoch>,
        link: Arc<Link>,
    ) -> (Self, mpsc::Receiver<ProbeReply>) {
        let (replies, replies_rx) = mpsc::channel(MAX_REPLIES);
        let side = Self {
            epoch,
            is_batched: AtomicBool::new(true),
            paths: RwLock::new(Paths {
                link,
                remote: None,
                candidates: Vec::new(),
            }),
            keys: OnceLock::new(),
            replies,
            is_busy: AtomicBool::new(false),
            busy: Notify::new(),
        };

        (side, replies_rx)
    }

    /// After the handshake: probes can be sent and verified.
    pub(crate) fn set_keys(&self, keys: ProbeKeys) {
        // The keys of a connection never change.
        let _ = self.keys.set(keys);
    }

    pub(crate) fn keys(&self) -> Option<&ProbeKeys> {
        self.keys.get()
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.read().link)
    }

    /// Replaces the byte stream, and ends the old one.
    pub(crate) fn replace_link(&self, link: Arc<Link>) {
        let before = std::mem::replace(&mut self.write().link, link);
        before.end();
    }

    pub(crate) fn set_candidates(&self, candidates: &[SocketAddr]) {
        self.write().candidates = candidates.to_vec();
    }

    /// Sends everything by UDP to `remote`, or over the byte stream.
    pub(crate) fn switch(&self, remote: Option<SocketAddr>) {
        let path = match remote {
            Some(_) => PathKind::Udp,
            None => PathKind::Stream,
        };
        self.write().remote = remote;
        if self.epoch.path() != path {
            self.epoch.switch(path);
        }
        // Tasks that wait for room there may use the new path.
        self.link().wake();
    }

    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.read().remote
    }

    pub(crate) fn set_batched(&self, is_batched: bool) {
        self.is_batched.store(is_batched, Ordering::Relaxed);
    }

    /// Returns whether data was sent since the last call.
    pub(crate) fn take_busy(&self) -> bool {
        self.is_busy.swap(false, Ordering::Relaxed)
    }

    /// Resolves when data is sent after [`ClientSide::take_busy`].
    pub(crate) async fn busy(&self) {
        self.busy.notified().await;
    }

    /// QUIC has sent `size` bytes; probes of the monitor do not count.
    pub(crate) fn note_sent(&self, size: usize) {
        if size >= DATA_SIZE && !self.is_busy.swap(true, Ordering::Relaxed) {
            self.busy.notify_one();
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Paths> {
        sync::read(&self.paths)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Paths> {
        sync::write(&self.paths)
    }
}

impl Side for ClientSide {
    fn route(&self, _: SocketAddr) -> Route {
        let paths = self.read();
        match paths.remote {
            Some(remote) => Route::Udp {
                remote,
                batched: self.is_batched.load(Ordering::Relaxed),
            },
            None => Route::Link(Arc::clone(&paths.link)),
        }
    }

    fn sent(&self, size: usize) {
        self.note_sent(size);
    }

    fn admit_udp(&self, from: SocketAddr) -> Option<SocketAddr> {
        let paths = self.read();
        let is_known = paths.remote == Some(from) || paths.candidates.contains(&from);

        is_known.then_some(LOGICAL_SERVER)
    }

    fn admit_link(&self, _: &Link) -> SocketAddr {
        LOGICAL_SERVER
    }

    fn udp_probe(&self, probe: &[u8], from: SocketAddr) -> Option<Answer> {
        let probe = self.keys()?.open(ProbeKind::Reply, probe)?;
        if self.replies.try_send(ProbeReply { from, probe }).is_err() {
            tracing::trace!("Path monitor behind with its replies");
        }

        None
    }
}

//! The manager's side of the socket: many clients, each with byte streams and UDP addresses.
//!
//! A UDP address is answered only after a genuine probe came from it, and handshake packets never
//! reach QUIC by UDP: to a stranger the port looks closed.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tp_core::path::{PathKind, batching::PARTS};
use tp_process::sync::{lock, read, write};

use crate::{
    congestion::PathEpoch,
    framed::{Link, now_ms},
    keys::SessionRef,
    mux::{Answer, Route, Side},
    probe::{DO_NOT_BATCH, MIN_SIZE, Probe, ProbeKeys, ProbeKind, REPLY_AS_BATCH, key_id},
    quic::{is_link_address, link_address},
};

/// Of an address, from its last genuine probe.
const REMOTE_LIFETIME_MS: u64 = 30_000;
/// Addresses of one client: its network may change, and each costs memory.
const MAX_REMOTES: usize = 4;
/// Byte streams served at once, and of one session: the one in use, and some whose end has not been
/// noticed yet.
const MAX_LINKS: usize = 8192;
const MAX_SESSION_LINKS: usize = 8;

/// The paths of one connected session.
#[derive(Debug)]
pub(crate) struct PeerPaths {
    session: SessionRef,
    keys: ProbeKeys,
    epoch: Arc<PathEpoch>,
    /// True if several datagrams may be sent to the client together.
    is_batched: AtomicBool,
    replay: Mutex<ReplayWindow>,
    remotes: Mutex<Vec<SocketAddr>>,
    last_probe_ms: AtomicU64,
    /// A datagram came by a path that is not the one in use.
    moved: Notify,
}

impl PeerPaths {
    pub(crate) fn new(session: SessionRef, keys: ProbeKeys, epoch: Arc<PathEpoch>) -> Arc<Self> {
        Arc::new(Self {
            session,
            keys,
            epoch,
            is_batched: AtomicBool::new(true),
            replay: Mutex::default(),
            remotes: Mutex::default(),
            last_probe_ms: AtomicU64::new(now_ms()),
            moved: Notify::new(),
        })
    }

    pub(crate) fn epoch(&self) -> &PathEpoch {
        &self.epoch
    }

    /// Resolves when the client may have moved.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Milliseconds since a probe arrived, on any path.
    pub(crate) fn silent_ms(&self) -> u64 {
        now_ms().saturating_sub(self.last_probe_ms.load(Ordering::Relaxed))
    }

    /// The reply to a request of `size` bytes, never longer than that. No amplification: a spoofed
    /// source address receives at most as many bytes as were sent.
    fn answer(&self, request: Probe, size: usize) -> Answer {
        let parts = match request.tag & REPLY_AS_BATCH {
            0 => 1,
            _ => PARTS.min(size / (MIN_SIZE + 1)).max(1),
        };
        let size = size / parts;
        let probes = (0u8..)
            .take(parts)
            .flat_map(|tag| {
                let part = Probe { tag, ..request };
                self.keys.seal(ProbeKind::Reply, part, size)
            })
            .collect();

        Answer { probes, size }
    }

    fn note_probe(&self) {
        self.last_probe_ms.store(now_ms(), Ordering::Relaxed);
    }

    fn arrived_by(&self, path: PathKind) {
        if self.epoch.path() != path {
            self.moved.notify_one();
        }
    }
}

/// The latest counters, each seen or not.
#[derive(Debug, Default)]
struct ReplayWindow {
    latest: u64,
    /// Bit n: `latest - n` was seen.
    seen: u64,
}

impl ReplayWindow {
    /// Returns whether `counter` is new; one that is too old for the window counts as seen.
    fn admit(&mut self, counter: u64) -> bool {
        if counter > self.latest {
            let shift = u32::try_from(counter - self.latest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.latest = counter;
            return true;
        }
        let age = self.latest - counter;
        let bit = 1u64.checked_shl(u32::try_from(age).unwrap_or(u32::MAX));
        match bit {
            Some(bit) if self.seen & bit == 0 => {
                self.seen |= bit;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// A byte stream and the session that its preface named.
#[derive(Debug)]
pub(crate) struct ServerLink {
    pub(crate) link: Arc<Link>,
    pub(crate) session: SessionRef,
    /// Its peer, once the handshake is done or a genuine probe came.
    peer: OnceLock<Arc<PeerPaths>>,
    proven: CancellationToken,
    /// The connection that it was proven for has ended.
    orphaned: CancellationToken,
    /// One at once.
    handshake: Arc<Semaphore>,
}

impl ServerLink {
    /// True if its other end has proven that it has the session's key.
    pub(crate) fn is_proven(&self) -> bool {
        self.peer.get().is_some()
    }

    /// Resolves once that is known.
    pub(crate) async fn proven(&self) {
        self.proven.cancelled().await;
    }

    /// Resolves once its connection has ended.
    pub(crate) async fn orphaned(&self) {
        self.orphaned.cancelled().await;
    }

    /// The first peer that proves its key keeps the stream.
    fn prove(&self, peer: &Arc<PeerPaths>) {
        let _ = self.peer.set(Arc::clone(peer));
        self.link.prove();
        self.proven.cancel();
    }

    /// A permit for a handshake on it.
    pub(crate) fn handshake(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.handshake).try_acquire_owned().ok()
    }

    fn is_of(&self, peer: &PeerPaths) -> bool {
        let own = self.peer.get();

        own.is_some_and(|own| own.keys.id() == peer.keys.id())
    }
}

#[derive(Debug)]
struct Remote {
    peer: Arc<PeerPaths>,
    proven_ms: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct ServerSide {
    next_link: AtomicU64,
    links: RwLock<HashMap<SocketAddr, Arc<ServerLink>>>,
    /// By the id of their probe keys.
    peers: RwLock<HashMap<u64, Arc<PeerPaths>>>,
    remotes: RwLock<HashMap<SocketAddr, Remote>>,
}

impl ServerSide {
    /// Registers a byte stream; `None` if there are too many. Over a session's limit, evicts its
    /// oldest unproven stream, else its oldest: a returning client needs a new stream, and a stranger
    /// who only knows the session's name cannot evict a proven stream while he holds others.
    pub(crate) fn add_link(&self, session: SessionRef) -> Option<Arc<ServerLink>> {
        let mut links = write(&self.links);
        let own: Vec<_> = links
            .values()
            .filter(|link| link.session == session)
            .cloned()
            .collect();
        if own.len() >= MAX_SESSION_LINKS
            && let Some(evicted) = own
                .iter()
                .min_by_key(|link| (link.is_proven(), link.link.address()))
        {
            tracing::debug!(%session, "Session has too many byte streams");
            links.remove(&evicted.link.address());
            evicted.link.end();
        }
        if links.len() >= MAX_LINKS {
            return None;
        }
        let id = self.next_link.fetch_add(1, Ordering::Relaxed) + 1;
        let link = Arc::new(ServerLink {
            link: Link::unproven(link_address(id)),
            session,
            peer: OnceLock::new(),
            proven: CancellationToken::new(),
            orphaned: CancellationToken::new(),
            handshake: Arc::new(Semaphore::new(1)),
        });
        links.insert(link.link.address(), Arc::clone(&link));

        Some(link)
    }

    pub(crate) fn remove_link(&self, link: &ServerLink) {
        link.link.end();
        write(&self.links).remove(&link.link.address());
    }

    pub(crate) fn end_links(&self) {
        let links: Vec<_> = write(&self.links).drain().collect();
        links.iter().for_each(|(_, link)| link.link.end());
    }

    pub(crate) fn link(&self, address: &SocketAddr) -> Option<Arc<ServerLink>> {
        read(&self.links).get(address).cloned()
    }

    /// After the handshake: the peer's probes are recognised.
    pub(crate) fn add_peer(&self, peer: &Arc<PeerPaths>, link: &ServerLink) {
        link.prove(peer);
        write(&self.peers).insert(peer.keys.id(), Arc::clone(peer));
    }

    pub(crate) fn remove_peer(&self, peer: &PeerPaths) {
        write(&self.peers).remove(&peer.keys.id());
        // They are useless without it, and count against the limits.
        let links = read(&self.links);
        for link in links.values().filter(|link| link.is_of(peer)) {
            link.orphaned.cancel();
        }
        drop(links);
        let addresses = std::mem::take(&mut *lock(&peer.remotes));
        self.forget(peer, &addresses);
    }

    /// Removes those of `addresses` that are still the peer's: behind one NAT another may have them
    /// by now.
    fn forget(&self, peer: &PeerPaths, addresses: &[SocketAddr]) {
        let mut remotes = write(&self.remotes);
        for address in addresses {
            let is_own = |remote: &Remote| remote.peer.keys.id() == peer.keys.id();
            if remotes.get(address).is_some_and(is_own) {
                remotes.remove(address);
            }
        }
    }

    /// A probe on a byte stream: answered there, if it is genuine.
    pub(crate) fn link_probe(&self, link: &ServerLink, probe: &[u8]) {
        let Some((peer, request)) = self.open(probe) else {
            return;
        };
        // Another session's key proves nothing.
        if peer.session != link.session {
            return;
        }
        peer.note_probe();
        link.prove(&peer);
        if !self.has(&peer) {
            // The peer has ended meanwhile, and did not find this stream.
            link.orphaned.cancel();
            return;
        }
        let reply = peer.keys.seal(ProbeKind::Reply, request, 0);
        link.link.send_probe(&reply);
    }

    /// QUIC datagrams came over a byte stream.
    pub(crate) fn link_data(&self, link: &ServerLink) {
        if let Some(peer) = link.peer.get() {
            peer.arrived_by(PathKind::Stream);
        }
    }

    fn has(&self, peer: &PeerPaths) -> bool {
        read(&self.peers).contains_key(&peer.keys.id())
    }

    fn open(&self, probe: &[u8]) -> Option<(Arc<PeerPaths>, Probe)> {
        let peer = read(&self.peers).get(&key_id(probe)?).cloned()?;
        let request = peer.keys.open(ProbeKind::Request, probe)?;

        Some((peer, request))
    }

    fn prove_remote(&self, peer: &Arc<PeerPaths>, address: SocketAddr) {
        if let Some(remote) = read(&self.remotes).get(&address)
            && Arc::ptr_eq(&remote.peer, peer)
        {
            remote.proven_ms.store(now_ms(), Ordering::Relaxed);
            return;
        }
        let evicted = {
            let mut own = lock(&peer.remotes);
            own.retain(|known| *known != address);
            own.push(address);
            (own.len() > MAX_REMOTES).then(|| own.remove(0))
        };
        self.forget(peer, evicted.as_slice());
        let mut remotes = write(&self.remotes);
        let remote = Remote {
            peer: Arc::clone(peer),
            proven_ms: AtomicU64::new(now_ms()),
        };
        remotes.insert(address, remote);
        drop(remotes);
        if !self.has(peer) {
            self.forget(peer, &[address]);
        }
        peer.moved.notify_one();
    }
}

impl Side for ServerSide {
    fn route(&self, destination: SocketAddr) -> Route {
        if !is_link_address(&destination) {
            let remotes = read(&self.remotes);
            let is_batched = |remote: &Remote| remote.peer.is_batched.load(Ordering::Relaxed);
            return Route::Udp {
                remote: destination,
                batched: remotes.get(&destination).is_none_or(is_batched),
            };
        }
        match read(&self.links).get(&destination) {
            Some(link) => Route::Link(Arc::clone(&link.link)),
            None => Route::Nowhere,
        }
    }

    fn sent(&self, _: usize) {}

    fn admit_udp(&self, from: SocketAddr) -> Option<SocketAddr> {
        let remotes = read(&self.remotes);
        let remote = remotes.get(&from)?;
        let age = now_ms().saturating_sub(remote.proven_ms.load(Ordering::Relaxed));
        if age > REMOTE_LIFETIME_MS {
            return None;
        }
        remote.peer.arrived_by(PathKind::Udp);

        Some(from)
    }

    fn admit_link(&self, link: &Link) -> SocketAddr {
        link.address()
    }

    fn udp_probe(&self, probe: &[u8], from: SocketAddr) -> Option<Answer> {
        let (peer, request) = self.open(probe)?;
        if !lock(&peer.replay).admit(request.counter) {
            return None;
        }
        peer.note_probe();
        peer.is_batched
            .store(request.tag & DO_NOT_BATCH == 0, Ordering::Relaxed);
        self.prove_remote(&peer, from);

        Some(peer.answer(request, probe.len()))
    }
}

#[cfg(test)]
mod tests;

//! The sessions that are connected to this replica, or were lately, and what they announce.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{sync::watch, time::Instant};
use tp_process::sync::lock;
use tp_proto::{
    crd::{MAX_INTERCEPT_PORTS, MAX_INTERCEPTS},
    tunnel::LocalIntercepts,
};
use tp_transport::{CloseCode, ClosedReason, Peer, SessionRef};

use super::{Intercepts, bump};
use crate::gateway::SessionQuota;

/// A client that is silent for longer gets no connections: it probes each second.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Of which a session is told whether they lead to one Intercept.
const MAX_SERVICES: usize = 64;

/// Whether something listens, by port, by UID of the Intercept.
type Announced = BTreeMap<String, BTreeMap<u16, bool>>;

/// Services that a session asks about, by UID of the Intercept.
type Asked = BTreeMap<String, Vec<String>>;

/// A connected session.
pub(crate) struct Served {
    pub(crate) peer: Peer,
    pub(crate) quota: Arc<SessionQuota>,
    calls: Mutex<Calls>,
    /// Of what agents report on its Intercepts.
    pub(super) reported: watch::Sender<u64>,
}

/// What a session announced last.
#[derive(Default)]
struct Calls {
    /// The number of the newest call.
    newest: u64,
    announced: Arc<Announced>,
    /// When each was first, by UID.
    since: BTreeMap<String, Instant>,
    asked: Asked,
    /// When the call that announced it ended; `None` while it lasts.
    ended: Option<Instant>,
}

/// What a session that ended without a word announced last.
pub(super) struct Left {
    announced: Arc<Announced>,
    since: Instant,
}

/// A session with the Intercepts that it announced.
pub(super) struct Presence {
    pub(super) session: SessionRef,
    pub(super) announced: Arc<Announced>,
    /// It was not heard from lately, and may come back.
    pub(super) is_quiet: bool,
    pub(super) is_connected: bool,
}

/// Keeps a session served; a later connection of it stays.
pub(crate) struct ServedGuard {
    intercepts: Arc<Intercepts>,
    served: Arc<Served>,
}

/// One call of a session. What it announced is quiet once it has ended, unless a later call has begun.
pub(crate) struct Announcing {
    pub(crate) intercepts: Arc<Intercepts>,
    pub(crate) served: Arc<Served>,
    call: u64,
}

impl Served {
    pub(super) fn announced(&self) -> Arc<Announced> {
        Arc::clone(&lock(&self.calls).announced)
    }

    /// How long the session has announced the Intercept.
    pub(super) fn announced_for(&self, uid: &str) -> Duration {
        let calls = lock(&self.calls);

        calls.since.get(uid).map_or(Duration::MAX, Instant::elapsed)
    }

    /// Changes of what agents report on its Intercepts.
    pub(crate) fn reported(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }

    /// The services that it asked about with this Intercept.
    pub(super) fn services(&self, uid: &str) -> Vec<String> {
        let calls = lock(&self.calls);

        calls.asked.get(uid).cloned().unwrap_or_default()
    }

    fn left(&self) -> Left {
        let calls = lock(&self.calls);

        Left {
            announced: Arc::clone(&calls.announced),
            since: calls.ended.unwrap_or_else(Instant::now),
        }
    }

    /// Returns whether the session said that it ends.
    fn has_quit(&self) -> bool {
        let quit = CloseCode::Quit;
        let closed = self.peer.closed().now_or_never();

        matches!(closed, Some(ClosedReason::Peer { code, .. }) if code == quit)
    }

    /// `None` if it has been quiet for too long.
    fn presence(&self, now: Instant, release_after: Duration) -> Option<Presence> {
        let calls = lock(&self.calls);
        let unannounced = calls
            .ended
            .map_or(Duration::ZERO, |ended| now.duration_since(ended));
        let silent = self.peer.silent_for();

        (unannounced.max(silent) < release_after).then(|| Presence {
            session: self.session().clone(),
            announced: Arc::clone(&calls.announced),
            is_quiet: calls.ended.is_some() || silent > SILENT_AFTER,
            is_connected: true,
        })
    }

    pub(crate) fn session(&self) -> &SessionRef {
        self.peer.session()
    }
}

impl Intercepts {
    /// Serves the Intercepts of a session until the guard is dropped.
    pub(crate) fn serve(self: &Arc<Self>, peer: Peer, quota: Arc<SessionQuota>) -> ServedGuard {
        let session = peer.session().clone();
        // It stands until the session announces something else.
        let before = lock(&self.served).get(&session).map(|before| before.left());
        let left = lock(&self.left).remove(&session).or(before);
        let calls = left.map_or_else(Calls::default, |left| Calls {
            announced: left.announced,
            since: BTreeMap::new(),
            ended: Some(left.since),
            ..Calls::default()
        });
        let served = Arc::new(Served {
            peer,
            quota,
            calls: Mutex::new(calls),
            reported: watch::Sender::new(0),
        });
        self.disconnected.remove(&session);
        lock(&self.served).insert(session, Arc::clone(&served));
        self.changed();

        ServedGuard {
            intercepts: Arc::clone(self),
            served,
        }
    }

    /// The sessions that are here, or that may come back.
    pub(super) fn presences(&self, now: Instant) -> Vec<Presence> {
        let release_after = self.whereabouts.release_after;
        let served: Vec<Arc<Served>> = lock(&self.served).values().cloned().collect();
        let mut left = lock(&self.left);
        left.retain(|_, left| now.duration_since(left.since) < release_after);
        let left = left.iter().map(|(session, left)| Presence {
            session: session.clone(),
            announced: Arc::clone(&left.announced),
            is_quiet: true,
            is_connected: false,
        });

        served
            .iter()
            .filter_map(|served| served.presence(now, release_after))
            .chain(left)
            .collect()
    }
}

impl ServedGuard {
    /// For the control streams of the session.
    pub(crate) fn handle(&self) -> ServedHandle {
        ServedHandle {
            intercepts: Arc::clone(&self.intercepts),
            served: Arc::clone(&self.served),
        }
    }
}

impl Drop for ServedGuard {
    fn drop(&mut self) {
        let mut all = lock(&self.intercepts.served);
        let session = self.served.peer.session();
        if all
            .get(session)
            .is_some_and(|it| Arc::ptr_eq(it, &self.served))
        {
            // At no moment it is as if it had never been here.
            self.intercepts.disconnected.insert(session.clone());
            all.remove(session);
            let left = self.served.left();
            if !left.announced.is_empty() && !self.served.has_quit() {
                lock(&self.intercepts.left).insert(session.clone(), left);
            }
        }
        drop(all);
        self.intercepts.changed();
    }
}

/// Announces Intercepts of one connected session.
#[derive(Clone)]
pub(crate) struct ServedHandle {
    intercepts: Arc<Intercepts>,
    served: Arc<Served>,
}

impl ServedHandle {
    pub(crate) fn intercepts(&self) -> &Intercepts {
        &self.intercepts
    }

    pub(crate) fn session(&self) -> &SessionRef {
        self.served.session()
    }

    /// Begins a call, which replaces the one before.
    pub(crate) fn begin(&self) -> Announcing {
        let mut calls = lock(&self.served.calls);
        calls.newest += 1;
        // The call before ends.
        bump(&self.intercepts.news);

        Announcing {
            intercepts: Arc::clone(&self.intercepts),
            served: Arc::clone(&self.served),
            call: calls.newest,
        }
    }
}

impl Announcing {
    /// Takes what the session says; returns whether the call is still the newest.
    pub(crate) fn announce(&self, local: LocalIntercepts) -> bool {
        let all = local.intercepts.into_iter().take(MAX_INTERCEPTS);
        let mut asked = Asked::new();
        let all = all.map(|intercept| {
            let services = intercept.services.into_iter().take(MAX_SERVICES);
            asked.insert(intercept.uid.clone(), services.collect());
            let ports = intercept.ports.into_iter().take(MAX_INTERCEPT_PORTS);
            let ports =
                ports.filter_map(|port| Some((u16::try_from(port.port).ok()?, port.is_listening)));
            (intercept.uid, ports.collect())
        });

        let all: Arc<Announced> = Arc::new(all.collect());
        let now = Instant::now();
        self.change(|calls| {
            calls.since.retain(|uid, _| all.contains_key(uid));
            for uid in all.keys() {
                calls.since.entry(uid.clone()).or_insert(now);
            }
            calls.announced = all;
            calls.asked = asked;
            calls.ended = None;
        })
    }

    /// Returns whether no later call has begun.
    pub(crate) fn is_newest(&self) -> bool {
        lock(&self.served.calls).newest == self.call
    }

    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        self.change(|calls| calls.since.values_mut().for_each(|since| *since -= by));
    }

    fn change(&self, change: impl FnOnce(&mut Calls)) -> bool {
        let mut calls = lock(&self.served.calls);
        if calls.newest != self.call {
            return false;
        }
        change(&mut calls);
        drop(calls);
        bump(&self.intercepts.news);

        true
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        self.change(|calls| {
            calls.ended.get_or_insert_with(Instant::now);
        });
    }
}

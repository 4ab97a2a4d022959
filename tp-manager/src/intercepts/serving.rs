//! The sessions that are connected to this replica, and what they announce.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tp_process::sync::lock;
use tp_proto::tunnel::LocalIntercepts;
use tp_transport::{Peer, SessionRef};

use super::{Intercepts, bump};
use crate::gateway::Quota;

/// Intercepts of one session, and ports of one Intercept.
const MAX_ANNOUNCED: usize = 64;
const MAX_PORTS: usize = 32;

/// Whether something listens, by port, by UID of the Intercept.
type Announced = BTreeMap<String, BTreeMap<u16, bool>>;

/// A connected session.
pub(crate) struct Served {
    pub(crate) peer: Peer,
    pub(crate) quota: Arc<Quota>,
    announced: Mutex<(u64, Arc<Announced>)>,
}

/// Keeps a session served; a later connection of it stays.
pub(crate) struct ServedGuard {
    intercepts: Arc<Intercepts>,
    served: Arc<Served>,
}

/// One call of a session; what it announced ends with it, unless a later call has begun.
pub(crate) struct Announcing {
    pub(crate) intercepts: Arc<Intercepts>,
    pub(crate) served: Arc<Served>,
    call: u64,
}

impl Served {
    pub(super) fn announced(&self) -> Arc<Announced> {
        Arc::clone(&lock(&self.announced).1)
    }

    pub(crate) fn session(&self) -> &SessionRef {
        self.peer.session()
    }
}

impl Intercepts {
    /// Serves the Intercepts of a session until the guard is dropped.
    pub(crate) fn serve(self: &Arc<Self>, peer: Peer, quota: Arc<Quota>) -> ServedGuard {
        let session = peer.session().clone();
        let served = Arc::new(Served {
            peer,
            quota,
            announced: Mutex::default(),
        });
        lock(&self.served).insert(session, Arc::clone(&served));
        self.changed();

        ServedGuard {
            intercepts: Arc::clone(self),
            served,
        }
    }

    pub(super) fn served(&self) -> Vec<Arc<Served>> {
        lock(&self.served).values().cloned().collect()
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
            all.remove(session);
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
        let mut announced = lock(&self.served.announced);
        announced.0 += 1;
        // The call before ends.
        bump(&self.intercepts.news);

        Announcing {
            intercepts: Arc::clone(&self.intercepts),
            served: Arc::clone(&self.served),
            call: announced.0,
        }
    }
}

impl Announcing {
    /// Takes what the session says; returns whether the call is still the newest.
    pub(crate) fn announce(&self, local: LocalIntercepts) -> bool {
        let all = local.intercepts.into_iter().take(MAX_ANNOUNCED);
        let all = all.map(|intercept| {
            let ports = intercept.ports.into_iter().take(MAX_PORTS);
            let ports =
                ports.filter_map(|port| Some((u16::try_from(port.port).ok()?, port.is_listening)));
            (intercept.uid, ports.collect())
        });

        self.replace(all.collect())
    }

    /// Returns whether no later call has begun.
    pub(crate) fn is_newest(&self) -> bool {
        lock(&self.served.announced).0 == self.call
    }

    fn replace(&self, all: Announced) -> bool {
        let mut announced = lock(&self.served.announced);
        if announced.0 != self.call {
            return false;
        }
        announced.1 = Arc::new(all);
        drop(announced);
        bump(&self.intercepts.news);

        true
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        self.replace(Announced::default());
    }
}

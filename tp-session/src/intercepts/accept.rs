//! The workstation's end of intercepted connections: each goes to the local port of the Intercept that
//! this session made for it, or is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tp_process::sync::{read, write};
use tp_proto::tunnel::Outcome;
use tp_transport::{Intercepted, SpliceCounters, dial_outcome, keep_alive, splice};

use super::{
    super::{
        root_link::RootLink,
        shared::{ActiveTunnel, Shared},
    },
    dial::{self, ClientRegistry, LocalTarget},
};

/// A local port takes a connection at once, or is full; another machine may be far away.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one Intercept at once.
const MAX_CONNECTIONS: usize = 4096;
/// There is no Intercept of that UID here, or not of that port.
const NOT_OURS: &str = "this session has not made that intercept";

/// Where the connections of the Intercepts go that this session has made. No connection of another one is
/// taken, whatever the manager says.
#[derive(Default)]
pub(super) struct InterceptTargets {
    by_uid: RwLock<BTreeMap<String, TargetsOfOne>>,
    /// The ports whose local address refused a connection since this was last taken.
    refused: watch::Sender<BTreeSet<(String, u16)>>,
    pub(super) counters: SpliceCounters,
    /// Not set where the root daemon cannot show clients.
    clients: OnceLock<ClientRegistry>,
}

/// The targets of one Intercept.
#[derive(Debug)]
struct TargetsOfOne {
    /// Where each port of a container leads.
    ports: BTreeMap<u16, LocalTarget>,
    slots: Arc<Semaphore>,
}

impl InterceptTargets {
    /// From now on connections of the Intercept go to these addresses.
    pub(super) fn insert(&self, uid: &str, ports: BTreeMap<u16, LocalTarget>) {
        let mut by_uid = write(&self.by_uid);
        match by_uid.get_mut(uid) {
            Some(known) => known.ports = ports,
            None => {
                let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
                by_uid.insert(uid.to_owned(), TargetsOfOne { ports, slots });
            }
        }
    }

    /// No further connection of the Intercept is taken; those under way go on.
    pub(super) fn remove(&self, uid: &str) {
        write(&self.by_uid).remove(uid);
    }

    pub(super) fn target(&self, uid: &str, port: u16) -> Option<(LocalTarget, Arc<Semaphore>)> {
        let by_uid = read(&self.by_uid);
        let of_one = by_uid.get(uid)?;

        Some((of_one.ports.get(&port)?.clone(), Arc::clone(&of_one.slots)))
    }

    /// From now on local processes are shown the client of each connection.
    pub(super) fn show_clients_by(&self, root: Arc<RootLink>) {
        // There is one root daemon for as long as there is a session.
        let _ = self.clients.set(ClientRegistry::new(root));
    }

    pub(super) fn note_refused(&self, uid: &str, port: u16) {
        self.refused.send_if_modified(|refused| {
            refused.insert((uid.to_owned(), port));
            true
        });
    }

    pub(super) fn refusals(&self) -> watch::Receiver<BTreeSet<(String, u16)>> {
        self.refused.subscribe()
    }

    pub(super) fn take_refused(&self) -> BTreeSet<(String, u16)> {
        let mut taken = BTreeSet::new();
        self.refused.send_if_modified(|refused| {
            taken = mem::take(refused);
            false
        });

        taken
    }

    /// Serves what arrives by each tunnel, until the connection ends. Connections end with the tunnel
    /// that they came by.
    pub(super) async fn serve(self: Arc<Self>, shared: Arc<Shared>) {
        let mut up = shared.up.subscribe();
        loop {
            let active = up.borrow_and_update().clone();
            match active {
                Some(active) => self.serve_tunnel(&active, &mut up).await,
                None if up.changed().await.is_err() => return,
                None => {}
            }
        }
    }

    async fn serve_tunnel(
        self: &Arc<Self>,
        active: &ActiveTunnel,
        up: &mut watch::Receiver<Option<ActiveTunnel>>,
    ) {
        // Dropped with the tunnel, which has reset all of them.
        let mut connections = JoinSet::new();
        loop {
            let intercepted = tokio::select! {
                // Each holds its buffers until it is joined.
                Some(_) = connections.join_next() => continue,
                intercepted = active.tunnel.accept() => intercepted,
            };
            let Some(intercepted) = intercepted else {
                break;
            };
            let this = Arc::clone(self);
            connections.spawn(async move { this.take(intercepted).await });
        }
        // Its successor, or none.
        let _ = up.changed().await;
    }

    async fn take(&self, intercepted: Intercepted) {
        let Intercepted { from, pending } = intercepted;
        let port = from.pod.port();
        let Some((target, slots)) = self.target(&from.intercept, port) else {
            pending.refuse(Outcome::Prohibited, NOT_OURS).await;
            return;
        };
        let Ok(_slot) = slots.try_acquire_owned() else {
            let reason = format!("{MAX_CONNECTIONS} connections of this intercept are open");
            pending.refuse(Outcome::Exhausted, &reason).await;
            return;
        };
        let cancelled = pending.cancelled();
        let dialled = dial::dial(target.clone(), &from, self.clients.get());
        let dialled = tokio::select! {
            () = cancelled => return,
            dialled = timeout(DIAL_TIMEOUT, dialled) => dialled,
        };
        let target = target.address;
        let tcp = match dialled {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                let outcome = dial_outcome(&error);
                if outcome == Outcome::Refused {
                    self.note_refused(&from.intercept, port);
                }
                tracing::debug!(%target, %error, "Intercepted connection is refused");
                // Addresses of the workstation are nobody else's business.
                let reason = format!("the workstation's port: {}", error.kind());
                pending.refuse(outcome, &reason).await;
                return;
            }
            Err(_) => {
                tracing::debug!(%target, "Local process does not answer");
                let reason = "the workstation's port does not answer";
                pending.refuse(Outcome::TimedOut, reason).await;
                return;
            }
        };
        if let Err(error) = keep_alive(&tcp) {
            tracing::debug!(%error, "Quiet connection not probed");
        }
        let Ok(flow) = pending.accept().await else {
            return;
        };
        let end = splice(tcp, flow, &self.counters).await;
        tracing::trace!(%target, ?end, "Intercepted connection ended");
    }
}

#[cfg(test)]
mod tests;

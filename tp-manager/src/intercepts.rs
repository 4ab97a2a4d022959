//! The `Intercept` objects of the cluster, which of them hold their ports, and which this replica
//! serves.
//!
//! The objects, with the Sessions that they name and the record of where these are, determine who holds
//! a port: all replicas come to the same answer (`tp_core::intercept::holders`).

pub(crate) mod container_calls;
mod leading;
mod orphans;
mod reports;
pub(crate) mod rights;
pub(crate) mod serving;
mod standing;
mod states;
pub(crate) mod status;
pub(crate) mod taking;
pub(crate) mod whereabouts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher::watcher},
};
use tokio::{sync::watch, time::Instant};
use tp_core::intercept::holders::{Claim, Standing, WorkloadKey};
use tp_process::sync::{lock, read, write};
use tp_proto::{
    agent::{Lease, PortState},
    crd::{Intercept, InterceptSpec},
};
use tp_transport::SessionRef;

use crate::{
    access::User,
    disconnected::Disconnected,
    index::{self, SyncedPart},
    model::{ObjectName, SharedModel, Update},
    sessions::Sessions,
};
use container_calls::ContainerCalls;
use orphans::Orphans;
use reports::Reports;
use rights::Denied;
use serving::{Left, Presence, Served};
use standing::Standings;
use taking::{EndedIntercepts, Taken};
use whereabouts::Whereabouts;

/// An `Intercept`, as far as the manager needs it.
#[derive(Debug, Clone)]
pub(crate) struct InterceptRecord {
    pub(crate) object: ObjectName,
    pub(crate) uid: String,
    created: Timestamp,
    pub(crate) session: SessionRef,
    user: Arc<User>,
    pub(crate) spec: InterceptSpec,
    taken: Option<Taken>,
    /// As the status has it; for the writer of the status alone.
    phase: String,
}

impl InterceptRecord {
    /// `None` for what was changed after it was made, is being deleted, or cannot be read: it is as
    /// if it were not there.
    fn of(object: &DynamicObject) -> Option<Arc<Self>> {
        let spec = InterceptSpec::as_made(object)?;

        Some(Arc::new(Self {
            object: ObjectName::new(object.namespace()?, object.name_any()),
            uid: object.uid()?,
            created: object.metadata.creation_timestamp.as_ref()?.0,
            session: SessionRef {
                namespace: spec.session.namespace.clone(),
                name: spec.session.name.clone(),
                uid: spec.session.uid.clone(),
            },
            user: Arc::new(User::new(spec.user.clone())),
            taken: object.data.get("status").and_then(Taken::of),
            phase: status::phase(object),
            spec,
        }))
    }

    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    pub(crate) fn created(&self) -> Timestamp {
        self.created
    }

    fn claim(&self) -> Claim {
        let InterceptSpec {
            user,
            workload,
            ports,
            ..
        } = &self.spec;

        Claim {
            uid: self.uid.clone(),
            created: self.created.as_second(),
            user: identity(&user.username, &user.uid),
            session: self.session.uid.clone(),
            workload: WorkloadKey {
                namespace: self.object.namespace.clone(),
                kind: workload.kind.clone(),
                name: workload.name.clone(),
            },
            ports: ports.iter().map(|port| port.port).collect(),
            pod: self.spec.pod().map(str::to_owned),
        }
    }

    /// Those of its ports that it holds.
    fn held(&self, standing: &Standing) -> impl Iterator<Item = u16> {
        let others = match standing {
            Standing::Holds { others } => Some(others),
            Standing::Orphan | Standing::Away => None,
        };
        let ports = self.spec.ports.iter().map(|it| it.port);

        ports.filter(move |port| others.is_some_and(|others| !others.contains_key(port)))
    }
}

/// Equal for one person alone: no name of a user has the separator.
fn identity(name: &str, uid: &str) -> String {
    format!("{name}\n{uid}")
}

/// The shared Intercepts; every change increments `revision`.
pub(crate) struct Intercepts {
    by_uid: RwLock<BTreeMap<String, Arc<InterceptRecord>>>,
    ended: Mutex<EndedIntercepts>,
    sessions: Arc<Sessions>,
    disconnected: Arc<Disconnected>,
    standings: Mutex<Option<Standings>>,
    /// Where the sessions of other replicas are.
    whereabouts: Whereabouts,
    orphans: Mutex<Orphans>,
    denied: Mutex<Denied>,
    served: Mutex<BTreeMap<SessionRef, Arc<Served>>>,
    /// Sessions whose connection ended by itself.
    left: Mutex<BTreeMap<SessionRef, Left>>,
    reports: Mutex<Reports>,
    model: SharedModel,
    is_listed: AtomicBool,
    pub(crate) container_calls: Arc<ContainerCalls>,
    /// Of the objects, and of connections.
    revision: watch::Sender<u64>,
    /// Of these, and of what sessions announce.
    news: watch::Sender<u64>,
    /// Of what agents report.
    reported: watch::Sender<u64>,
}

impl Intercepts {
    pub(crate) fn new(
        sessions: Arc<Sessions>,
        disconnected: Arc<Disconnected>,
        model: SharedModel,
        whereabouts: Whereabouts,
    ) -> Self {
        Self {
            by_uid: RwLock::default(),
            ended: Mutex::default(),
            sessions,
            disconnected,
            standings: Mutex::default(),
            whereabouts,
            orphans: Mutex::default(),
            denied: Mutex::default(),
            served: Mutex::default(),
            left: Mutex::default(),
            reports: Mutex::default(),
            model,
            is_listed: AtomicBool::new(false),
            container_calls: Arc::default(),
            revision: watch::Sender::new(0),
            news: watch::Sender::new(0),
            reported: watch::Sender::new(0),
        }
    }

    /// Changes of anything that leases derive from.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Passes changes of Sessions on until it is aborted.
    pub(crate) async fn follow_sessions(&self) {
        let mut sessions = self.sessions.changes();
        while sessions.changed().await.is_ok() {
            bump(&self.news);
        }
    }

    /// Watches the Intercepts until it is aborted.
    pub(crate) async fn follow(&self, client: Client, synced: SyncedPart) {
        let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Intercept>(&()));
        let events = watcher(api, index::watch_config()).default_backoff();
        let convert = |object: &DynamicObject| {
            let uid = object.uid().unwrap_or_default();
            (uid, InterceptRecord::of(object))
        };

        index::follow_with(events, convert, |updates| self.apply(updates), synced).await;
    }

    fn apply(&self, updates: Vec<Update<String, Arc<InterceptRecord>>>) {
        let mut by_uid = write(&self.by_uid);
        for update in updates {
            match update {
                Update::Applied(uid, record) => drop(by_uid.insert(uid, record)),
                Update::Removed(uid) => {
                    if let Some(record) = by_uid.remove(&uid) {
                        lock(&self.ended).insert(&record, self.denial(&record));
                    }
                }
                Update::Replaced(all) => {
                    let mut ended = lock(&self.ended);
                    let gone = by_uid.values().filter(|it| !all.contains_key(&it.uid));
                    gone.for_each(|record| ended.insert(record, self.denial(record)));
                    *by_uid = all;
                    self.is_listed.store(true, Ordering::Release);
                }
            }
        }
        drop(by_uid);
        self.changed();
    }

    #[cfg(test)]
    pub(crate) fn insert(&self, object: &DynamicObject) {
        let uid = object.uid().unwrap_or_default();
        let update = match InterceptRecord::of(object) {
            Some(record) => Update::Applied(uid, record),
            None => Update::Removed(uid),
        };
        self.apply(vec![update]);
    }

    #[cfg(test)]
    pub(crate) fn remove(&self, uid: &str) {
        self.apply(vec![Update::Removed(uid.to_owned())]);
    }

    fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    fn changed(&self) {
        bump(&self.revision);
        bump(&self.news);
    }

    fn record(&self, uid: &str) -> Option<Arc<InterceptRecord>> {
        read(&self.by_uid).get(uid).cloned()
    }

    /// The namespace of the Intercept with this UID.
    pub(crate) fn namespace_of(&self, uid: &str) -> Option<String> {
        Some(self.record(uid)?.object.namespace.clone())
    }

    /// The leases that agents get now: of Intercepts whose session is here and has announced them, or
    /// was and may come back.
    pub(crate) fn leases(&self) -> Vec<Lease> {
        self.leases_at(Instant::now())
    }

    pub(crate) fn leases_at(&self, now: Instant) -> Vec<Lease> {
        let standings = self.standings();
        let mut leases = Vec::new();
        for presence in self.presences(now) {
            let Presence {
                session,
                announced,
                is_quiet,
                ..
            } = presence;
            for (uid, local) in announced.iter() {
                let Some(record) = self.record(uid).filter(|it| it.session == session) else {
                    continue;
                };
                let Some(standing) = standings.get(uid) else {
                    continue;
                };
                if self.denial(&record).is_some() {
                    continue;
                }
                let ports: BTreeSet<u16> = record.held(standing).collect();
                let ports: Vec<PortState> = ports
                    .into_iter()
                    .map(|port| PortState {
                        port: port.into(),
                        is_listening: local.get(&port).copied().unwrap_or(false),
                    })
                    .collect();
                if !ports.is_empty() {
                    leases.push(Lease {
                        intercept: uid.clone(),
                        ports,
                        namespace: record.object.namespace.clone(),
                        name: record.object.name.clone(),
                        is_quiet,
                    });
                }
            }
        }

        leases
    }

    /// The session of the Intercept with this UID, in this namespace, if it holds this port. The
    /// error is a sentence for the agent's status.
    pub(crate) fn holder(
        &self,
        uid: &str,
        namespace: &str,
        port: u16,
    ) -> Result<Arc<Served>, String> {
        let record = self
            .record(uid)
            .filter(|record| record.object.namespace == namespace)
            .ok_or_else(|| format!("there is no such Intercept in namespace {namespace}"))?;
        let standings = self.standings();
        let name = &record.object.name;
        let standing = standings.get(uid);
        if !standing.is_some_and(|it| record.held(it).any(|held| held == port)) {
            return Err(format!("Intercept {name} does not hold port {port}"));
        }
        if let Some(reason) = self.denial(&record) {
            return Err(reason);
        }
        let served = lock(&self.served).get(&record.session).cloned();
        let served = served.filter(|served| served.announced().contains_key(uid));

        served.ok_or_else(|| format!("the session of Intercept {name} is not connected here"))
    }
}

fn bump(revision: &watch::Sender<u64>) {
    revision.send_modify(|revision| *revision += 1);
}

#[cfg(test)]
mod tests;

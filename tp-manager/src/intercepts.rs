//! The `Intercept` objects of the cluster, which of them hold their ports, and which this replica
//! serves.
//!
//! The objects alone, with the Sessions that they name, determine who holds a port: all replicas
//! come to the same answer (`tp_core::intercept::holders`).

pub(crate) mod container_calls;
mod leading;
pub(crate) mod serving;
mod states;
pub(crate) mod status;
pub(crate) mod taking;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher::watcher},
};
use tokio::{sync::watch, time::Instant};
use tp_core::intercept::holders::{Claim, Claimant, Standing, WorkloadKey, standings};
use tp_process::sync::{lock, read, write};
use tp_proto::{
    agent::{Lease, PodReport, PortState},
    crd::{Intercept, InterceptSpec},
};
use tp_transport::SessionRef;

use crate::{
    access::User,
    disconnected::Disconnected,
    index::{self, SyncedPart},
    model::{ObjectName, Update},
    sessions::Sessions,
};
use container_calls::ContainerCalls;
use serving::{Left, Presence, SILENT_AFTER, Served};
use taking::{EndedIntercepts, Taken};

/// Age of the standings at which they are derived again: Sessions expire without an event.
const STANDINGS_LIFETIME: Duration = Duration::from_secs(2);
/// An Intercept may be known before its Session.
const ORPHAN_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// Reports of one agent.
const MAX_REPORTS: usize = 4096;

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

/// What each Intercept holds, as of one moment.
#[derive(Debug)]
struct Standings {
    revisions: (u64, u64),
    derived: Instant,
    by_uid: Arc<BTreeMap<String, Standing>>,
}

/// A report of an agent, with the node that it is of.
#[derive(Debug, Clone, PartialEq)]
struct NodeReport {
    node: Arc<str>,
    report: PodReport,
}

/// By agent, and by Intercept and pod.
type Reports = BTreeMap<u64, BTreeMap<(String, String), NodeReport>>;

/// The shared Intercepts; every change increments `revision`.
pub(crate) struct Intercepts {
    by_uid: RwLock<BTreeMap<String, Arc<InterceptRecord>>>,
    ended: Mutex<EndedIntercepts>,
    sessions: Arc<Sessions>,
    disconnected: Arc<Disconnected>,
    standings: Mutex<Option<Standings>>,
    served: Mutex<BTreeMap<SessionRef, Arc<Served>>>,
    /// Sessions whose connection ended by itself.
    left: Mutex<BTreeMap<SessionRef, Left>>,
    reports: Mutex<Reports>,
    pub(crate) container_calls: Arc<ContainerCalls>,
    /// Of the objects, and of connections.
    revision: watch::Sender<u64>,
    /// Of what agents report, and sessions announce.
    news: watch::Sender<u64>,
}

impl Intercepts {
    pub(crate) fn new(sessions: Arc<Sessions>, disconnected: Arc<Disconnected>) -> Self {
        Self {
            by_uid: RwLock::default(),
            ended: Mutex::default(),
            sessions,
            disconnected,
            standings: Mutex::default(),
            served: Mutex::default(),
            left: Mutex::default(),
            reports: Mutex::default(),
            container_calls: Arc::default(),
            revision: watch::Sender::new(0),
            news: watch::Sender::new(0),
        }
    }

    /// Changes of anything that leases and states derive from.
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
                        lock(&self.ended).insert(&record);
                    }
                }
                Update::Replaced(all) => {
                    let mut ended = lock(&self.ended);
                    let gone = by_uid.values().filter(|it| !all.contains_key(&it.uid));
                    gone.for_each(|record| ended.insert(record));
                    *by_uid = all;
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

    fn changed(&self) {
        bump(&self.revision);
        bump(&self.news);
    }

    fn record(&self, uid: &str) -> Option<Arc<InterceptRecord>> {
        read(&self.by_uid).get(uid).cloned()
    }

    /// What each Intercept holds: derived once for a change, not for each connection.
    fn standings(&self) -> Arc<BTreeMap<String, Standing>> {
        let mut cached = lock(&self.standings);
        let revisions = (*self.revision.borrow(), *self.sessions.changes().borrow());
        if let Some(known) = &*cached
            && known.revisions == revisions
            && known.derived.elapsed() < STANDINGS_LIFETIME
        {
            return Arc::clone(&known.by_uid);
        }
        let by_uid = Arc::new(self.derive(Timestamp::now()));
        *cached = Some(Standings {
            revisions,
            derived: Instant::now(),
            by_uid: Arc::clone(&by_uid),
        });

        by_uid
    }

    fn derive(&self, now: Timestamp) -> BTreeMap<String, Standing> {
        let by_uid = read(&self.by_uid);
        let mut claimants = BTreeMap::new();
        let mut claims = Vec::new();
        let mut found = BTreeMap::new();
        for record in by_uid.values() {
            // Of each by itself: what one says of a Session must not count for another.
            let valid = self.sessions.revalidate(&record.session, None, now);
            if valid.is_ok_and(|valid| valid.user.is_same_person(&record.user)) {
                let claim = record.claim();
                let claimant = Claimant {
                    user: claim.user.clone(),
                    // Of a session that this replica never had, another may have the connection.
                    disconnected: self
                        .disconnected
                        .since(&record.session)
                        .or_else(|| self.silence(&record.session)),
                };
                claimants.insert(record.session.uid.as_str(), claimant);
                claims.push(claim);
            } else {
                found.insert(record.uid.clone(), Standing::Orphan);
            }
        }
        let held = standings(&claims, |uid| claimants.get(uid).cloned());
        found.extend(held.into_iter().map(|(uid, it)| (uid.to_owned(), it)));

        found
    }

    /// How long a session that is connected here has been silent, if that is too long: it was killed,
    /// or its workstation is asleep.
    fn silence(&self, session: &SessionRef) -> Option<Duration> {
        let silent = lock(&self.served).get(session)?.peer.silent_for();

        (silent > SILENT_AFTER).then_some(silent)
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
            } = presence;
            for (uid, local) in announced.iter() {
                let Some(record) = self.record(uid).filter(|it| it.session == session) else {
                    continue;
                };
                let Some(standing) = standings.get(uid) else {
                    continue;
                };
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
        let served = lock(&self.served).get(&record.session).cloned();
        let served = served.filter(|served| served.announced().contains_key(uid));

        served.ok_or_else(|| format!("the session of Intercept {name} is not connected here"))
    }

    /// Takes what an agent reports.
    pub(crate) fn report(&self, agent: u64, node: &Arc<str>, news: Vec<PodReport>) {
        use tp_proto::agent::PodPhase;

        let mut reports = lock(&self.reports);
        let of_agent = reports.entry(agent).or_default();
        for report in news {
            let key = (report.intercept.clone(), report.pod.clone());
            if report.phase() == PodPhase::Released {
                of_agent.remove(&key);
            } else if of_agent.len() < MAX_REPORTS || of_agent.contains_key(&key) {
                let node = Arc::clone(node);
                of_agent.insert(key, NodeReport { node, report });
            }
        }
        drop(reports);
        bump(&self.news);
    }

    /// The agent's connection has ended.
    pub(crate) fn forget_agent(&self, agent: u64) {
        lock(&self.reports).remove(&agent);
        bump(&self.news);
    }

    fn reports_of(&self, uid: &str) -> Vec<NodeReport> {
        let reports = lock(&self.reports);
        // Each agent's are in the order of their Intercepts.
        let all = reports.values().flat_map(|of_agent| {
            of_agent
                .range((uid.to_owned(), String::new())..)
                .take_while(|((of, _), _)| of == uid)
                .map(|(_, report)| report.clone())
        });

        all.collect()
    }

    /// Intercepts that nobody can use again: their Session is gone.
    pub(crate) fn orphans(&self, now: Timestamp) -> Vec<Arc<InterceptRecord>> {
        let by_uid = read(&self.by_uid);

        by_uid
            .values()
            .filter(|record| now.duration_since(record.created) > ORPHAN_AFTER)
            .filter(|record| !self.sessions.exists(&record.session))
            .cloned()
            .collect()
    }
}

fn bump(revision: &watch::Sender<u64>) {
    revision.send_modify(|revision| *revision += 1);
}

#[cfg(test)]
mod tests;

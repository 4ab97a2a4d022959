//! Watches what decides over redirects, and asks the API server what the watches do not tell: owners of
//! ReplicaSets and rights of users.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tp_core::intercept::holders::WorkloadKey;
use tp_proto::{
    crd::{GROUP, Intercept, UserInfo},
    grant,
};

use crate::facts::{Facts, InterceptFacts, UserReview};
use pods::{KnownPod, OwnerReplicaSet};
pub(crate) use rights::ClusterRights;

mod intercepts;
pub(crate) mod managers;
mod pods;
mod rights;
#[cfg(test)]
mod tests;

/// Watches are short, so that a dead connection is noticed when its watch should have ended.
const WATCH_TIMEOUT_SECONDS: u32 = 15;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Age of an answer after which it is asked for again: a right may be revoked, or given.
const GRANT_LIFETIME: Duration = Duration::from_secs(10);
const DENIAL_LIFETIME: Duration = Duration::from_secs(3);
/// After a request that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Requests at a time.
const MAX_REQUESTS: usize = 8;

/// The state of the watches, and the facts that are made of it.
pub(crate) struct Knowledge {
    client: Client,
    node: String,
    manager_namespace: String,
    gateways: Vec<IpAddr>,
    facts: watch::Sender<Facts>,
    intercepts: BTreeMap<String, KnownIntercept>,
    pods: BTreeMap<String, KnownPod>,
    /// The Deployments of ReplicaSets, by UID of the ReplicaSet.
    owners: BTreeMap<String, Option<WorkloadKey>>,
    reviews: BTreeMap<String, Asked>,
    requests: JoinSet<Answer>,
    /// ReplicaSets whose owner is asked for, each with the time of the next attempt after one that
    /// failed.
    asked: BTreeMap<String, Option<Instant>>,
}

/// A valid Intercept.
struct KnownIntercept {
    facts: InterceptFacts,
    user: UserInfo,
}

#[derive(Default)]
struct Asked {
    answer: Option<UserReview>,
    is_under_way: bool,
    due: Option<Instant>,
}

enum Answer {
    Owner(OwnerReplicaSet, Result<Option<WorkloadKey>, String>),
    Review(String, Result<UserReview, String>),
}

/// A change that a watch tells, with the objects of a listing together.
enum Change<K> {
    All(Vec<K>),
    Applied(K),
    Deleted(K),
}

impl Knowledge {
    pub(crate) fn new(
        client: Client,
        node: String,
        manager_namespace: String,
        facts: watch::Sender<Facts>,
    ) -> Self {
        Self {
            client,
            node,
            manager_namespace,
            gateways: pods::gateways(),
            facts,
            intercepts: BTreeMap::new(),
            pods: BTreeMap::new(),
            owners: BTreeMap::new(),
            reviews: BTreeMap::new(),
            requests: JoinSet::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Runs until it is aborted.
    pub(crate) async fn follow(mut self) {
        let resource = ApiResource::erase::<Intercept>(&());
        let intercepts: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let pods: Api<Pod> = Api::all(self.client.clone());
        let of_node = format!("spec.nodeName={}", self.node);
        let mut intercepts = std::pin::pin!(changes(
            watcher(intercepts, watch_config()).default_backoff()
        ));
        let mut pods = std::pin::pin!(changes(
            watcher(pods, watch_config().fields(&of_node)).default_backoff()
        ));
        let mut tick = interval(TICK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(change) = intercepts.next() => self.take_intercepts(change),
                Some(change) = pods.next() => self.take_pods(change),
                Some(Ok(answer)) = self.requests.join_next() => self.take_answer(answer),
                _ = tick.tick() => {}
            }
            self.ask();
            self.publish();
        }
    }

    fn take_intercepts(&mut self, change: Change<DynamicObject>) {
        match change {
            Change::All(objects) => {
                self.intercepts = objects.iter().filter_map(intercepts::read).collect();
            }
            Change::Applied(object) => {
                if let Some((uid, intercept)) = intercepts::read(&object) {
                    self.intercepts.insert(uid, intercept);
                } else if let Some(uid) = &object.metadata.uid {
                    self.intercepts.remove(uid);
                }
            }
            Change::Deleted(object) => {
                if let Some(uid) = &object.metadata.uid {
                    self.intercepts.remove(uid);
                }
            }
        }
    }

    fn take_pods(&mut self, change: Change<Pod>) {
        match change {
            Change::All(objects) => {
                let read = |pod: &Pod| pods::read(pod, &self.gateways);
                self.pods = objects.iter().filter_map(read).collect();
            }
            Change::Applied(object) => {
                if let Some((uid, pod)) = pods::read(&object, &self.gateways) {
                    self.pods.insert(uid, pod);
                } else if let Some(uid) = &object.metadata.uid {
                    self.pods.remove(uid);
                }
            }
            Change::Deleted(object) => {
                if let Some(uid) = &object.metadata.uid {
                    self.pods.remove(uid);
                }
            }
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Owner(replica_set, owner) => match owner {
                Ok(owner) => {
                    self.asked.remove(&replica_set.uid);
                    self.owners.insert(replica_set.uid, owner);
                }
                Err(error) => {
                    let name = replica_set.name;
                    tracing::warn!(name, error, "Owner of a ReplicaSet is not known");
                    let due = Instant::now() + RETRY_INTERVAL;
                    self.asked.insert(replica_set.uid, Some(due));
                }
            },
            Answer::Review(uid, review) => {
                let Some(asked) = self.reviews.get_mut(&uid) else {
                    return;
                };
                asked.is_under_way = false;
                // An answer outlives an API server that is away.
                match review {
                    Ok(review) => asked.answer = Some(review),
                    Err(error) => {
                        tracing::debug!(error, "Right of a user is not known");
                        let unknown = format!("the right of its user cannot be reviewed: {error}");
                        asked.answer.get_or_insert(UserReview::Denied(unknown));
                    }
                }
                let lifetime = match asked.answer {
                    Some(UserReview::Allowed) => GRANT_LIFETIME,
                    Some(UserReview::Denied(_)) | None => DENIAL_LIFETIME,
                };
                asked.due = Some(Instant::now() + lifetime);
            }
        }
    }

    /// Asks what is not known, or was asked too long ago.
    fn ask(&mut self) {
        self.forget();
        let now = Instant::now();
        let unknown = self.pods.values().filter_map(|pod| pod.owner.clone());
        let unknown = unknown.filter(|it| {
            let asked = self.asked.get(&it.uid);
            let is_due = asked.is_none_or(|due| due.is_some_and(|due| now >= due));
            is_due && !self.owners.contains_key(&it.uid)
        });
        let unknown: Vec<_> = unknown.collect();
        for replica_set in unknown {
            if self.requests.len() >= MAX_REQUESTS {
                return;
            }
            // More pods may have it.
            if self.asked.insert(replica_set.uid.clone(), None) != Some(None) {
                let client = self.client.clone();
                self.requests.spawn(async move {
                    let owner = owner_of(client, &replica_set).await;
                    Answer::Owner(replica_set, owner)
                });
            }
        }
        let here = self.pods.values().flat_map(|it| self.workloads(it));
        let here: BTreeSet<WorkloadKey> = here.cloned().collect();
        for (uid, intercept) in &self.intercepts {
            let is_new = !self.reviews.contains_key(uid);
            if !here.contains(&intercept.facts.workload) && is_new {
                continue;
            }
            if self.requests.len() >= MAX_REQUESTS {
                return;
            }
            let asked = self.reviews.entry(uid.clone()).or_default();
            if asked.is_under_way || asked.due.is_some_and(|due| now < due) {
                continue;
            }
            asked.is_under_way = true;
            let (client, uid) = (self.client.clone(), uid.clone());
            let namespace = intercept.facts.workload.namespace.clone();
            let user = intercept.user.clone();
            let granting =
                grant::intercept_command(&user.username, &namespace, &self.manager_namespace);
            self.requests.spawn(async move {
                let review = review(client, user, namespace, granting).await;
                Answer::Review(uid, review)
            });
        }
    }

    /// Forgets what concerns nothing that is left.
    fn forget(&mut self) {
        self.reviews
            .retain(|uid, _| self.intercepts.contains_key(uid));
        let owners = self.pods.values().filter_map(|pod| pod.owner.as_ref());
        let owners: BTreeSet<&String> = owners.map(|owner| &owner.uid).collect();
        self.owners.retain(|uid, _| owners.contains(uid));
        self.asked.retain(|uid, _| owners.contains(uid));
    }

    fn workloads<'a>(&'a self, pod: &'a KnownPod) -> impl Iterator<Item = &'a WorkloadKey> {
        let owner = pod.owner.as_ref();
        let deployment = owner.and_then(|owner| self.owners.get(&owner.uid)?.as_ref());

        pod.facts.workloads.iter().chain(deployment)
    }

    fn publish(&self) {
        let intercepts = self.intercepts.iter();
        let pods = self.pods.iter().map(|(uid, pod)| {
            let mut facts = pod.facts.clone();
            facts.workloads = self.workloads(pod).cloned().collect();
            (uid.clone(), facts)
        });
        let reviews = self.reviews.iter();
        let facts = Facts {
            intercepts: intercepts
                .map(|(uid, it)| (uid.clone(), it.facts.clone()))
                .collect(),
            pods: pods.collect(),
            reviews: reviews
                .filter_map(|(uid, it)| Some((uid.clone(), it.answer.clone()?)))
                .collect(),
        };
        self.facts.send_if_modified(|current| {
            let is_new = *current != facts;
            *current = facts;
            is_new
        });
    }
}

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS)
}

/// Gathers the objects of a listing until it is complete.
fn changes<K: Send + 'static>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
) -> impl Stream<Item = Change<K>> + Send {
    events
        .scan((Vec::new(), false), |(listing, was_interrupted), event| {
            let is_interrupted = event.is_err();
            let change = match event {
                Ok(Event::Init) => {
                    listing.clear();
                    None
                }
                Ok(Event::InitApply(object)) => {
                    listing.push(object);
                    None
                }
                Ok(Event::InitDone) => Some(Change::All(std::mem::take(listing))),
                Ok(Event::Apply(object)) => Some(Change::Applied(object)),
                Ok(Event::Delete(object)) => Some(Change::Deleted(object)),
                Err(error) => {
                    // The watch goes on by itself; the API server may be away.
                    if !*was_interrupted {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::warn!(error, "Watch interrupted");
                    }
                    None
                }
            };
            *was_interrupted = is_interrupted;
            std::future::ready(Some(change))
        })
        .filter_map(std::future::ready)
}

/// The Deployment that a ReplicaSet is of.
async fn owner_of(
    client: Client,
    replica_set: &OwnerReplicaSet,
) -> Result<Option<WorkloadKey>, String> {
    let api: Api<ReplicaSet> = Api::namespaced(client, &replica_set.namespace);
    let got = timeout(REQUEST_TIMEOUT, api.get_metadata_opt(&replica_set.name)).await;
    let got = got.map_err(|_| "the API server did not answer in time".to_owned())?;
    let got = got.map_err(|error| error.to_string())?;
    let metadata = got.map(|object| object.metadata).unwrap_or_default();
    if metadata.uid.as_ref() != Some(&replica_set.uid) {
        return Ok(None);
    }
    let owners = metadata.owner_references.unwrap_or_default();
    let owner = owners.into_iter().find(|it| {
        it.controller == Some(true)
            && it.kind == "Deployment"
            && it.api_version.starts_with("apps/")
    });

    Ok(owner.map(|owner| WorkloadKey {
        namespace: replica_set.namespace.clone(),
        kind: owner.kind,
        name: owner.name,
    }))
}

/// Whether a user may intercept in a namespace; the command `granting` lets them.
async fn review(
    client: Client,
    user: UserInfo,
    namespace: String,
    granting: String,
) -> Result<UserReview, String> {
    let denied = format!(
        "user {} may not create intercepts.{GROUP} in namespace {namespace}: an administrator lets \
         them by `{granting}`",
        user.username
    );
    let attributes = ResourceAttributes {
        group: Some(GROUP.into()),
        resource: Some("intercepts".into()),
        verb: Some("create".into()),
        namespace: Some(namespace),
        ..ResourceAttributes::default()
    };

    Ok(match is_allowed(client, user, attributes).await? {
        true => UserReview::Allowed,
        false => UserReview::Denied(denied),
    })
}

async fn is_allowed(
    client: Client,
    user: UserInfo,
    attributes: ResourceAttributes,
) -> Result<bool, String> {
    let reviews: Api<SubjectAccessReview> = Api::all(client);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.username),
            uid: Some(user.uid).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups),
            extra: Some(user.extra),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let parameters = PostParams::default();
    let answer = timeout(REQUEST_TIMEOUT, reviews.create(&parameters, &review)).await;
    let answer = answer.map_err(|_| "the API server did not answer in time".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;

    Ok(answer.status.is_some_and(|status| status.allowed))
}

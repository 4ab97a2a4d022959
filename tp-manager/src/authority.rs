//! Who may reach what: SubjectAccessReviews, remembered for a while.
//!
//! A right that is taken away must end within seconds. Every change of an RBAC object makes all
//! answers stale at once; other authorizers (webhooks) are asked again after [`FRESH`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tp_proto::crd::{GROUP, UserInfo};

/// How long an answer holds without any change of RBAC.
const FRESH: Duration = Duration::from_secs(30);
const REVIEW_LIMIT: Duration = Duration::from_secs(5);
/// Answers remembered; beyond it all are forgotten and asked anew.
const MAX_ANSWERS: usize = 100_000;
const CONCURRENT_REVIEWS: usize = 16;

/// A right to connect.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Right {
    /// `create sessions` in this namespace.
    Namespace(String),
    /// `create sessions` in every namespace.
    AllNamespaces,
    /// `create sessions/external` in every namespace: addresses outside the cluster.
    External,
}

#[derive(Clone)]
struct Answer {
    allowed: bool,
    generation: u64,
    since: Instant,
}

/// Asks the API server, and remembers.
pub(crate) struct Authority {
    client: Client,
    answers: Mutex<HashMap<(String, Right), Answer>>,
    generation: AtomicU64,
    changes: watch::Sender<u64>,
}

impl Authority {
    /// Starts the watches of RBAC on `tasks`, which owns them.
    pub(crate) fn start(client: &Client, tasks: &mut JoinSet<()>) -> Arc<Self> {
        let this = Arc::new(Self {
            client: client.clone(),
            answers: Mutex::default(),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        });
        tasks.spawn(Arc::clone(&this).follow::<ClusterRole>());
        tasks.spawn(Arc::clone(&this).follow::<ClusterRoleBinding>());
        tasks.spawn(Arc::clone(&this).follow::<Role>());
        tasks.spawn(Arc::clone(&this).follow::<RoleBinding>());

        this
    }

    /// Ticks when rights may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether `user` has `right`. An API server that does not answer in time gives no right.
    pub(crate) async fn allows(&self, user: &UserInfo, right: &Right) -> bool {
        // The generation is read first: a change during the review makes its answer stale.
        let generation = self.generation.load(Ordering::SeqCst);
        let key = (identity(user), right.clone());
        if let Some(allowed) = self.remembered(&key, generation) {
            return allowed;
        }
        let allowed = match timeout(REVIEW_LIMIT, self.review(user, right)).await {
            Ok(Ok(allowed)) => allowed,
            Ok(Err(error)) => {
                tracing::info!(%error, "SubjectAccessReview failed");
                return false;
            }
            Err(_) => {
                tracing::info!("SubjectAccessReview timed out");
                return false;
            }
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            answers.clear();
        }
        answers.insert(key, Answer { allowed, generation, since: Instant::now() });

        allowed
    }

    /// Whether `user` may reach `namespace`.
    pub(crate) async fn may_reach(&self, user: &UserInfo, namespace: &str) -> bool {
        self.allows(user, &Right::Namespace(namespace.to_owned())).await
    }

    /// Those of `namespaces` that `user` may reach.
    pub(crate) async fn reachable(
        &self,
        user: &UserInfo,
        namespaces: BTreeSet<String>,
    ) -> BTreeSet<String> {
        if self.allows(user, &Right::AllNamespaces).await {
            return namespaces;
        }

        stream::iter(namespaces)
            .map(|namespace| async move {
                self.may_reach(user, &namespace).await.then_some(namespace)
            })
            .buffer_unordered(CONCURRENT_REVIEWS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    fn remembered(&self, key: &(String, Right), generation: u64) -> Option<bool> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(key)?;

        (answer.generation == generation && answer.since.elapsed() < FRESH)
            .then_some(answer.allowed)
    }

    async fn review(&self, user: &UserInfo, right: &Right) -> Result<bool, kube::Error> {
        let (namespace, subresource) = match right {
            Right::Namespace(namespace) => (Some(namespace.clone()), None),
            Right::AllNamespaces => (None, None),
            Right::External => (None, Some("external".to_owned())),
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    resource: Some("sessions".to_owned()),
                    verb: Some("create".to_owned()),
                    namespace,
                    subresource,
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;

        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn follow<K>(self: Arc<Self>)
    where
        K: Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        let api = Api::<K>::all(self.client.clone());
        let config = watcher::Config::default();
        let mut events = watcher::metadata_watcher(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            if let Err(error) = &event {
                tracing::info!(kind = %K::kind(&()), %error, "Watch failed, trying again");
            }
            // After an error changes may have been missed.
            self.generation.fetch_add(1, Ordering::SeqCst);
            self.changes.send_modify(|tick| *tick += 1);
        }
    }
}

/// Everything an authorizer sees of a user, as one key.
fn identity(user: &UserInfo) -> String {
    serde_json::to_string(user).unwrap_or_default()
}

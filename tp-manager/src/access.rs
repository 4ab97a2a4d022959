//! What a user may reach: the API server's RBAC decides, by SubjectAccessReview.
//!
//! A right that is known is reviewed again while its connection is dialled, so an API server that
//! hangs does not delay it. A dial waits for the review of a right that is unknown or was refused.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tp_process::sync::lock;
use tp_proto::crd::{GROUP, UserInfo};

mod polling;

pub(crate) use polling::PolledRights;

/// Age of an answer after which it is asked for again: a revoked right ends within seconds.
const RECHECK_AFTER: Duration = Duration::from_secs(2);
/// As [`RECHECK_AFTER`], of what a person was refused, who asks for the right, and tries again.
const RECHECK_REFUSAL_AFTER: Duration = Duration::from_millis(250);
/// A younger grant counts without waiting for its review: a revoked right may take this long to
/// end.
const GRANT_LIFETIME: Duration = Duration::from_secs(5);
/// Bounds a connection's wait for the review of an older grant.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Age up to which a failed review means that the API server hangs: no such wait.
const FAILURE_LIFETIME: Duration = Duration::from_secs(60);
/// How long a right that was granted holds while the API server does not answer.
const STALE_GRANT_LIFETIME: Duration = Duration::from_secs(600);
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// From a failed review to the next one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Concurrent reviews that a caller waits for, in all and for one user.
const MAX_REVIEWS: usize = 64;
const MAX_REVIEWS_OF_USER: usize = 8;
/// Concurrent reviews that no caller waits for: those for service tables.
const MAX_BACKGROUND_REVIEWS: usize = 16;
const MAX_CACHED: usize = 65_536;
/// Answers evicted at once from a full cache: the least recently used.
const EVICTED_AT_ONCE: usize = MAX_CACHED / 8;

/// A user, with a fingerprint of everything that the authorizer looks at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    info: UserInfo,
    fingerprint: [u8; 32],
}

impl User {
    pub(crate) fn new(info: UserInfo) -> Self {
        let text = serde_json::to_vec(&info).expect("user information is plain data");
        Self {
            info,
            fingerprint: Sha256::digest(text).into(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.info.username
    }

    /// Returns whether both are one user, perhaps with different groups.
    pub(crate) fn is_same_person(&self, other: &Self) -> bool {
        (&self.info.username, &self.info.uid) == (&other.info.username, &other.info.uid)
    }
}

/// The destinations that one right covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scope {
    Namespace(String),
    AllNamespaces,
    /// Addresses outside the cluster, asked in the session's own namespace.
    External(String),
    /// The traffic of workloads of this namespace.
    Intercepts(String),
    /// The intercepts of others in this namespace.
    TakeOver(String),
    /// The insides of pods of this namespace.
    Exec(String),
}

impl Scope {
    /// Age of a refusal after which it is asked for again.
    fn recheck_refusal_after(&self) -> Duration {
        match self {
            Self::Intercepts(_) | Self::TakeOver(_) | Self::Exec(_) => RECHECK_REFUSAL_AFTER,
            // Programs ask for these, as often as they like.
            _ => RECHECK_AFTER,
        }
    }

    /// The missing right, for a message.
    pub(crate) fn right(&self) -> String {
        match self {
            Self::Namespace(namespace) => {
                format!("create sessions.{GROUP} in namespace {namespace}")
            }
            Self::AllNamespaces => format!("create sessions.{GROUP} in all namespaces"),
            Self::Intercepts(namespace) => {
                format!("create intercepts.{GROUP} in namespace {namespace}")
            }
            Self::TakeOver(namespace) => {
                format!("takeover intercepts.{GROUP} in namespace {namespace}")
            }
            Self::Exec(namespace) => format!("create pods/exec in namespace {namespace}"),
            Self::External(namespace) => {
                format!("create sessions.{GROUP}/external in namespace {namespace}")
            }
        }
    }

    fn attributes(&self) -> ResourceAttributes {
        let (namespace, subresource) = match self {
            Self::Namespace(namespace)
            | Self::Intercepts(namespace)
            | Self::TakeOver(namespace) => (Some(namespace.clone()), None),
            Self::AllNamespaces => (None, None),
            Self::Exec(namespace) => (Some(namespace.clone()), Some("exec".into())),
            Self::External(namespace) => (Some(namespace.clone()), Some("external".into())),
        };
        let resource = match self {
            Self::Intercepts(_) | Self::TakeOver(_) => "intercepts",
            Self::Exec(_) => "pods",
            _ => "sessions",
        };
        let group = match self {
            Self::Exec(_) => "",
            _ => GROUP,
        };
        let verb = match self {
            Self::TakeOver(_) => "takeover",
            _ => "create",
        };
        ResourceAttributes {
            group: Some(group.into()),
            resource: Some(resource.into()),
            subresource,
            verb: Some(verb.into()),
            namespace,
            ..ResourceAttributes::default()
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("the API server did not answer a SubjectAccessReview in time")]
    TimedOut,
    #[error("the SubjectAccessReview failed")]
    Review(#[source] Arc<kube::Error>),
}

type Key = ([u8; 32], Scope);
type ReviewOutcome = Result<bool, AccessError>;

#[derive(Debug, Clone, Copy)]
struct Answer {
    allowed: bool,
    asked: Instant,
}

/// The cached state of one right.
#[derive(Debug, Default)]
struct CachedRight {
    answer: Option<Answer>,
    /// Time and error of the last review that failed.
    failure: Option<(Instant, AccessError)>,
    /// Shared by all callers.
    review: Option<Review>,
    last_used: Option<Instant>,
}

/// A review under way, shared by all callers.
#[derive(Debug, Clone)]
pub(crate) struct Review {
    number: u64,
    urgency: Urgency,
    begun: Instant,
    _task: Arc<AbortOnDropHandle<()>>,
    outcome: watch::Receiver<Option<ReviewOutcome>>,
}

impl Review {
    pub(crate) async fn outcome(mut self) -> ReviewOutcome {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());

        outcome.unwrap_or(Err(AccessError::TimedOut))
    }
}

/// The answer for a right, and the review under way if the answer is an old one.
#[derive(Debug)]
pub(crate) struct Right {
    pub(crate) allowed: bool,
    pub(crate) review: Option<Review>,
    /// Bounds the wait for the review.
    settle_timeout: Duration,
}

impl Right {
    /// Returns whether the user has the right, as far as the review ends in time.
    pub(crate) async fn is_settled(&self) -> bool {
        let Some(review) = &self.review else {
            return self.allowed;
        };
        let outcome = review.clone().outcome();

        !matches!(
            timeout_at(review.begun + self.settle_timeout, outcome).await,
            Ok(Ok(false))
        )
    }
}

/// Tells whether a caller waits for the review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Awaited,
    Background,
}

/// Asks the API server, and caches its answers.
pub(crate) struct Access {
    client: Client,
    cache: Mutex<HashMap<Key, CachedRight>>,
    awaited: Arc<Semaphore>,
    background: Arc<Semaphore>,
    /// Shares of `awaited`, by user.
    users: Mutex<HashMap<(String, String), Weak<Semaphore>>>,
    /// Rights polled for all tables, by the user's fingerprint.
    polled: Mutex<HashMap<[u8; 32], polling::UserPolls>>,
    reviews: AtomicU64,
}

impl Access {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            cache: Mutex::default(),
            awaited: Arc::new(Semaphore::new(MAX_REVIEWS)),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND_REVIEWS)),
            users: Mutex::default(),
            polled: Mutex::default(),
            reviews: AtomicU64::new(0),
        })
    }

    /// The right for a dial: at once if the cache has it.
    pub(crate) async fn right_for_dial(
        self: &Arc<Self>,
        user: &Arc<User>,
        scope: &Scope,
    ) -> Result<Right, AccessError> {
        let lookup = self.look_up(user, scope, Urgency::Awaited);
        let Some(granted) = lookup.granted() else {
            return Ok(Right {
                allowed: lookup.resolve().await?,
                review: None,
                settle_timeout: Duration::ZERO,
            });
        };
        let is_sure = granted.asked.elapsed() < GRANT_LIFETIME || lookup.hangs;

        Ok(Right {
            allowed: true,
            review: lookup.review,
            settle_timeout: if is_sure {
                Duration::ZERO
            } else {
                SETTLE_TIMEOUT
            },
        })
    }

    /// Returns whether the user has the right now. While the API server does not answer, its last
    /// grant holds.
    pub(crate) async fn allows(self: &Arc<Self>, user: &Arc<User>, scope: &Scope) -> ReviewOutcome {
        self.ask(user, scope, Urgency::Awaited).await
    }

    /// [`Self::allows`] at low priority.
    pub(crate) async fn allows_in_background(
        self: &Arc<Self>,
        user: &Arc<User>,
        scope: &Scope,
    ) -> ReviewOutcome {
        self.ask(user, scope, Urgency::Background).await
    }

    async fn ask(
        self: &Arc<Self>,
        user: &Arc<User>,
        scope: &Scope,
        urgency: Urgency,
    ) -> ReviewOutcome {
        self.look_up(user, scope, urgency).resolve().await
    }

    /// The cached state, and the review under way unless the answer is fresh.
    fn look_up(self: &Arc<Self>, user: &Arc<User>, scope: &Scope, urgency: Urgency) -> Lookup {
        let now = Instant::now();
        let mut all = self.cache();
        if all.len() >= MAX_CACHED {
            evict(&mut all);
        }
        let known = all.entry((user.fingerprint, scope.clone())).or_default();
        known.last_used = Some(now);
        let is_within = |since: Instant, limit| now.saturating_duration_since(since) < limit;
        let answer = known
            .answer
            .filter(|it| is_within(it.asked, STALE_GRANT_LIFETIME));
        let failure = known.failure.clone();
        let failed_within = |limit| {
            failure
                .as_ref()
                .is_some_and(|(at, _): &(Instant, _)| is_within(*at, limit))
        };
        let hangs = failed_within(FAILURE_LIFETIME);
        let is_fresh = answer.is_some_and(|it| match it.allowed {
            true => is_within(it.asked, RECHECK_AFTER),
            false => is_within(it.asked, scope.recheck_refusal_after()),
        });
        if !is_fresh && !failed_within(RETRY_INTERVAL) {
            let under_way = known.review.take();
            let is_enough =
                |review: &Review| urgency == Urgency::Background || review.urgency == urgency;
            let review = under_way.filter(is_enough);
            known.review = Some(review.unwrap_or_else(|| self.start(user, scope, urgency)));
        }
        let review = known.review.clone().filter(|_| !is_fresh);

        Lookup {
            answer,
            is_fresh,
            hangs,
            review,
            failure: failure.map(|(_, error)| error),
        }
    }

    fn start(self: &Arc<Self>, user: &Arc<User>, scope: &Scope, urgency: Urgency) -> Review {
        let (sender, outcome) = watch::channel(None);
        let number = self.reviews.fetch_add(1, Ordering::Relaxed);
        let access = Arc::downgrade(self);
        let (client, user, scope) = (self.client.clone(), Arc::clone(user), scope.clone());
        let limits = match urgency {
            Urgency::Awaited => vec![self.share(&user), Arc::clone(&self.awaited)],
            Urgency::Background => vec![Arc::clone(&self.background)],
        };
        let task = tokio::spawn(async move {
            let (mut permits, mut asked) = (Vec::new(), Instant::now());
            let answer = async {
                for limit in limits {
                    permits.push(limit.acquire_owned().await);
                }
                asked = Instant::now();
                ask(client, &user, &scope).await
            };
            let outcome = match timeout(REVIEW_TIMEOUT, answer).await {
                Ok(result) => result.map_err(|error| AccessError::Review(Arc::new(error))),
                Err(_) => Err(AccessError::TimedOut),
            };
            if let Some(access) = access.upgrade() {
                access.remember((user.fingerprint, scope), number, asked, &outcome);
            }
            sender.send_replace(Some(outcome));
        });

        Review {
            number,
            urgency,
            begun: Instant::now(),
            _task: Arc::new(AbortOnDropHandle::new(task)),
            outcome,
        }
    }

    fn share(&self, user: &User) -> Arc<Semaphore> {
        let person = (user.info.username.clone(), user.info.uid.clone());
        let mut users = lock(&self.users);
        if let Some(share) = users.get(&person).and_then(Weak::upgrade) {
            return share;
        }
        users.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(MAX_REVIEWS_OF_USER));
        users.insert(person, Arc::downgrade(&share));

        share
    }

    /// Of two reviews of one right the later request counts. Called by the review's own task, whose
    /// handle it may drop: the task only sends the outcome afterwards.
    fn remember(&self, key: Key, number: u64, asked: Instant, outcome: &ReviewOutcome) {
        let mut all = self.cache();
        let Entry::Occupied(mut entry) = all.entry(key) else {
            return;
        };
        let known = entry.get_mut();
        known.review.take_if(|review| review.number == number);
        match outcome {
            Ok(allowed) if known.answer.is_none_or(|answer| answer.asked <= asked) => {
                known.failure = None;
                known.answer = Some(Answer {
                    allowed: *allowed,
                    asked,
                });
            }
            Ok(_) => {}
            Err(error) => known.failure = Some((Instant::now(), error.clone())),
        }
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<Key, CachedRight>> {
        lock(&self.cache)
    }
}

/// A snapshot of a cached right.
struct Lookup {
    answer: Option<Answer>,
    is_fresh: bool,
    /// A review failed recently.
    hangs: bool,
    review: Option<Review>,
    failure: Option<AccessError>,
}

impl Lookup {
    fn granted(&self) -> Option<Answer> {
        self.answer.filter(|answer| answer.allowed)
    }

    /// The API server's answer. While it does not answer, nobody can revoke a right, and its last
    /// grant holds.
    async fn resolve(self) -> ReviewOutcome {
        let granted = self.granted();
        if let Some(answer) = self.answer.filter(|_| self.is_fresh) {
            return Ok(answer.allowed);
        }
        let outcome = match self.review {
            Some(review) => review.outcome().await,
            None => Err(self.failure.unwrap_or(AccessError::TimedOut)),
        };
        match (outcome, granted) {
            (Err(error), Some(_)) => {
                tracing::debug!(%error, "Old answer used");
                Ok(true)
            }
            (outcome, _) => outcome,
        }
    }
}

async fn ask(client: Client, user: &User, scope: &Scope) -> Result<bool, kube::Error> {
    let reviews: Api<SubjectAccessReview> = Api::all(client);
    let info = user.info.clone();
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(info.username),
            uid: Some(info.uid).filter(|uid| !uid.is_empty()),
            groups: Some(info.groups),
            extra: Some(info.extra),
            resource_attributes: Some(scope.attributes()),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &review).await?;

    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Evicts the least recently used rights, whose next use waits for the API server.
fn evict(all: &mut HashMap<Key, CachedRight>) {
    let mut last_used: Vec<Instant> = all.values().filter_map(|known| known.last_used).collect();
    last_used.sort_unstable();
    if let Some(&limit) = last_used.get(EVICTED_AT_ONCE) {
        all.retain(|_, known| known.last_used >= Some(limit));
    }
}

#[cfg(test)]
mod tests;

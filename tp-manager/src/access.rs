//! What a user may reach: the API server's RBAC decides, by SubjectAccessReview.
//!
//! A right that is known is asked for again beside the connection that it is for, which an API server
//! that hangs does not hold up. What is not known, and what was refused, is waited for.

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
use tp_proto::crd::{GROUP, UserInfo};

use crate::sync::lock;

mod pace;

pub(crate) use pace::Questions;

/// An answer is asked for again after this time: a right that is revoked ends within seconds.
const FRESH: Duration = Duration::from_secs(2);
/// A right that was granted this lately counts while it is asked for again: as long as a right may
/// take to end.
const RECENT: Duration = Duration::from_secs(5);
/// How long a connection waits for the review of an older one, unless a review failed this lately:
/// the API server hangs.
const PATIENCE: Duration = Duration::from_millis(300);
const HANGS: Duration = Duration::from_secs(60);
/// How long a right that was granted holds while the API server does not answer.
const STALE: Duration = Duration::from_secs(600);
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A review that failed is not tried again before.
const RETRY: Duration = Duration::from_secs(1);
/// Reviews under way at once that somebody waits for, and of one user.
const MAX_REVIEWS: usize = 64;
const MAX_REVIEWS_OF_USER: usize = 8;
/// The same of those that nobody waits for: for tables of names.
const MAX_BESIDE: usize = 16;
const MAX_CACHED: usize = 65_536;
/// Forgotten at once when that is full: those that were asked for the longest ago.
const FORGOTTEN: usize = MAX_CACHED / 8;

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

    /// Whether both are one user, whatever their groups were at the time.
    pub(crate) fn is_same_person(&self, other: &Self) -> bool {
        (&self.info.username, &self.info.uid) == (&other.info.username, &other.info.uid)
    }
}

/// What somebody wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scope {
    Namespace(String),
    AllNamespaces,
    /// Addresses outside the cluster, asked in the session's own namespace.
    External(String),
}

impl Scope {
    /// The missing right, for a message.
    pub(crate) fn right(&self) -> String {
        match self {
            Self::Namespace(namespace) => {
                format!("create sessions.{GROUP} in namespace {namespace}")
            }
            Self::AllNamespaces => format!("create sessions.{GROUP} in all namespaces"),
            Self::External(namespace) => {
                format!("create sessions.{GROUP}/external in namespace {namespace}")
            }
        }
    }

    fn attributes(&self) -> ResourceAttributes {
        let (namespace, subresource) = match self {
            Self::Namespace(namespace) => (Some(namespace.clone()), None),
            Self::AllNamespaces => (None, None),
            Self::External(namespace) => (Some(namespace.clone()), Some("external".into())),
        };
        ResourceAttributes {
            group: Some(GROUP.into()),
            resource: Some("sessions".into()),
            subresource,
            verb: Some("create".into()),
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
type Outcome = Result<bool, AccessError>;

#[derive(Debug, Clone, Copy)]
struct Answer {
    allowed: bool,
    asked: Instant,
}

/// What is known of one right.
#[derive(Debug, Default)]
struct Known {
    answer: Option<Answer>,
    /// When a review failed last, and how.
    failure: Option<(Instant, AccessError)>,
    /// One for all who need it.
    review: Option<Review>,
    looked_at: Option<Instant>,
}

/// A review under way, whoever waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Review {
    number: u64,
    urgency: Urgency,
    begun: Instant,
    _task: Arc<AbortOnDropHandle<()>>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Review {
    pub(crate) async fn outcome(mut self) -> Outcome {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());

        outcome.unwrap_or(Err(AccessError::TimedOut))
    }
}

/// Whether a right is there, and the review of what is only remembered.
#[derive(Debug)]
pub(crate) struct Right {
    pub(crate) allowed: bool,
    pub(crate) review: Option<Review>,
    /// How long the review is worth waiting for.
    patience: Duration,
}

impl Right {
    /// Whether it is there, as far as that can be told in time.
    pub(crate) async fn is_settled(&self) -> bool {
        let Some(review) = &self.review else {
            return self.allowed;
        };
        let outcome = review.clone().outcome();

        !matches!(
            timeout_at(review.begun + self.patience, outcome).await,
            Ok(Ok(false))
        )
    }
}

/// For whom the API server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Awaited,
    Beside,
}

/// Asks, and remembers for a moment.
pub(crate) struct Access {
    client: Client,
    known: Mutex<HashMap<Key, Known>>,
    awaited: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    /// Shares of `awaited`, by user.
    users: Mutex<HashMap<(String, String), Weak<Semaphore>>>,
    /// Asked for again and again, for all tables, by the user's fingerprint.
    questions: Mutex<HashMap<[u8; 32], pace::Asked>>,
    reviews: AtomicU64,
}

impl Access {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            known: Mutex::default(),
            awaited: Arc::new(Semaphore::new(MAX_REVIEWS)),
            beside: Arc::new(Semaphore::new(MAX_BESIDE)),
            users: Mutex::default(),
            questions: Mutex::default(),
            reviews: AtomicU64::new(0),
        })
    }

    /// For a connection that is to be: at once where the right is known.
    pub(crate) async fn at_once(
        self: &Arc<Self>,
        user: &Arc<User>,
        scope: &Scope,
    ) -> Result<Right, AccessError> {
        let look = self.look(user, scope, Urgency::Awaited);
        let Some(granted) = look.granted() else {
            return Ok(Right {
                allowed: look.told().await?,
                review: None,
                patience: Duration::ZERO,
            });
        };
        let is_sure = granted.asked.elapsed() < RECENT || look.hangs;

        Ok(Right {
            allowed: true,
            review: look.review,
            patience: if is_sure { Duration::ZERO } else { PATIENCE },
        })
    }

    /// As of now; while the API server is away, what it said last.
    pub(crate) async fn allows(self: &Arc<Self>, user: &Arc<User>, scope: &Scope) -> Outcome {
        self.ask(user, scope, Urgency::Awaited).await
    }

    /// The same where nobody waits.
    pub(crate) async fn allows_beside(
        self: &Arc<Self>,
        user: &Arc<User>,
        scope: &Scope,
    ) -> Outcome {
        self.ask(user, scope, Urgency::Beside).await
    }

    async fn ask(self: &Arc<Self>, user: &Arc<User>, scope: &Scope, urgency: Urgency) -> Outcome {
        self.look(user, scope, urgency).told().await
    }

    /// What is known, and the review that it takes if that is not fresh.
    fn look(self: &Arc<Self>, user: &Arc<User>, scope: &Scope, urgency: Urgency) -> Look {
        let now = Instant::now();
        let mut all = self.known();
        if all.len() >= MAX_CACHED {
            forget(&mut all);
        }
        let known = all.entry((user.fingerprint, scope.clone())).or_default();
        known.looked_at = Some(now);
        let is_within = |since: Instant, limit| now.saturating_duration_since(since) < limit;
        let answer = known.answer.filter(|it| is_within(it.asked, STALE));
        let failure = known.failure.clone();
        let failed_within = |limit| {
            failure
                .as_ref()
                .is_some_and(|(at, _): &(Instant, _)| is_within(*at, limit))
        };
        let hangs = failed_within(HANGS);
        let is_fresh = answer.is_some_and(|it| is_within(it.asked, FRESH));
        if !is_fresh && !failed_within(RETRY) {
            let under_way = known.review.take();
            let is_enough =
                |review: &Review| urgency == Urgency::Beside || review.urgency == urgency;
            let review = under_way.filter(is_enough);
            known.review = Some(review.unwrap_or_else(|| self.start(user, scope, urgency)));
        }
        let review = known.review.clone().filter(|_| !is_fresh);

        Look {
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
        let rooms = match urgency {
            Urgency::Awaited => vec![self.share(&user), Arc::clone(&self.awaited)],
            Urgency::Beside => vec![Arc::clone(&self.beside)],
        };
        let task = tokio::spawn(async move {
            let (mut permits, mut asked) = (Vec::new(), Instant::now());
            let answer = async {
                for room in rooms {
                    permits.push(room.acquire_owned().await);
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

    /// Of two reviews of one right the later question counts. Called by the review's own task, whose
    /// handle it may drop: nothing of it is left to do but to tell.
    fn remember(&self, key: Key, number: u64, asked: Instant, outcome: &Outcome) {
        let mut all = self.known();
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

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        lock(&self.known)
    }
}

/// What is known of a right at one moment.
struct Look {
    answer: Option<Answer>,
    is_fresh: bool,
    /// A review failed lately.
    hangs: bool,
    review: Option<Review>,
    failure: Option<AccessError>,
}

impl Look {
    fn granted(&self) -> Option<Answer> {
        self.answer.filter(|answer| answer.allowed)
    }

    /// What the API server says. While it is away, where nobody can revoke anything, a right that it
    /// granted last holds.
    async fn told(self) -> Outcome {
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

/// Makes room: who has not asked for the longest time waits for the API server once.
fn forget(all: &mut HashMap<Key, Known>) {
    let mut looked_at: Vec<Instant> = all.values().filter_map(|known| known.looked_at).collect();
    looked_at.sort_unstable();
    if let Some(&limit) = looked_at.get(FORGOTTEN) {
        all.retain(|_, known| known.looked_at >= Some(limit));
    }
}

#[cfg(test)]
mod tests;

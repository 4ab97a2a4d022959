//! What a user may reach: the API server's RBAC decides, by SubjectAccessReview.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tp_proto::crd::{GROUP, UserInfo};

/// An answer is asked for again after this time: a right that is revoked ends within seconds.
const FRESH: Duration = Duration::from_secs(2);
/// While the API server is away, what it said last holds for this long.
const STALE: Duration = Duration::from_secs(600);
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REVIEWS: usize = 32;
const MAX_CACHED: usize = 16_384;

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

#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("the API server did not answer a SubjectAccessReview in time")]
    TimedOut,
    #[error("the SubjectAccessReview failed")]
    Review(#[source] Box<kube::Error>),
}

#[derive(Clone, Copy)]
struct Answer {
    allowed: bool,
    asked: Instant,
}

/// Asks, and remembers for a moment.
pub(crate) struct Access {
    client: Client,
    answers: Mutex<HashMap<([u8; 32], Scope), Answer>>,
    reviews: Semaphore,
}

impl Access {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            answers: Mutex::default(),
            reviews: Semaphore::new(MAX_REVIEWS),
        })
    }

    pub(crate) async fn allows(&self, user: &User, scope: &Scope) -> Result<bool, AccessError> {
        let key = (user.fingerprint, scope.clone());
        let known = self.known(&key);
        if let Some(answer) = known
            && answer.asked.elapsed() < FRESH
        {
            return Ok(answer.allowed);
        }

        let asked = Instant::now();
        let review = async {
            let _permit = self.reviews.acquire().await;
            self.review(user, scope).await
        };
        let result = match timeout(REVIEW_TIMEOUT, review).await {
            Ok(result) => result.map_err(|error| AccessError::Review(Box::new(error))),
            Err(_) => Err(AccessError::TimedOut),
        };
        match (result, known) {
            (Ok(allowed), _) => {
                self.remember(key, Answer { allowed, asked });
                Ok(allowed)
            }
            // Nobody can revoke anything at an API server that is away.
            (Err(error), Some(answer)) if answer.asked.elapsed() < STALE => {
                tracing::debug!(%error, "An old answer stands in");
                Ok(answer.allowed)
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn review(&self, user: &User, scope: &Scope) -> Result<bool, kube::Error> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
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

    fn known(&self, key: &([u8; 32], Scope)) -> Option<Answer> {
        self.lock().get(key).copied()
    }

    fn remember(&self, key: ([u8; 32], Scope), answer: Answer) {
        let mut answers = self.lock();
        if answers.len() >= MAX_CACHED {
            answers.retain(|_, answer| answer.asked.elapsed() < FRESH);
        }
        if answers.len() >= MAX_CACHED {
            answers.clear();
        }
        answers.insert(key, answer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<([u8; 32], Scope), Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_who_differ_in_groups_do_not_share_answers() {
        let user = |groups: &[&str]| {
            User::new(UserInfo {
                username: "alice".into(),
                groups: groups.iter().map(|&group| group.into()).collect(),
                ..UserInfo::default()
            })
        };

        assert_eq!(user(&["a"]).fingerprint, user(&["a"]).fingerprint);
        assert_ne!(user(&["a"]).fingerprint, user(&["b"]).fingerprint);
    }

    #[test]
    fn external_addresses_are_a_subresource() {
        let attributes = Scope::External("shop".into()).attributes();

        assert_eq!(attributes.subresource.as_deref(), Some("external"));
        assert_eq!(attributes.namespace.as_deref(), Some("shop"));
    }
}

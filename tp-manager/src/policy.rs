//! Checks that the admission policy that proves `spec.user` is in force, and since when.
//!
//! The manager tries to forge Sessions, as dry runs: only their refusal is proof.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        authentication::v1::SelfSubjectReview,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher::watcher},
};
use tokio::sync::watch;
use tp_core::VERSION;
use tp_proto::crd::{POLICY_NAME, Session, SessionSpec, UserInfo};

use presence::{ObjectEvent, ObjectPresence, narrowing_of_binding, narrowing_of_policy};

use crate::index;

mod presence;

/// A policy takes effect some tenths of a second after it was written, and time stamps have whole
/// seconds: an object made sooner after it proves nothing.
pub(crate) const EFFECTIVE_AFTER: SignedDuration = SignedDuration::from_secs(3);

/// A policy of this age is in effect, even if clocks differ.
const SURELY_EFFECTIVE_AFTER: SignedDuration = SignedDuration::from_secs(60);

const CHECK_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// An older proof does not count: the API server may have been away.
const PROOF_LIFETIME: SignedDuration = SignedDuration::from_secs(180);

/// The state of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The last change of policy or binding; `None` while one of them is missing.
    pub(crate) since: Option<Timestamp>,
    /// The time, by this replica's clock, from which a refusal comes from the current policy.
    settled_at: Timestamp,
    /// The time of the last refusal of forged Sessions.
    proven: Option<Timestamp>,
    /// The reason why it is not proven.
    doubt: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            since: None,
            settled_at: Timestamp::default(),
            proven: None,
            doubt: format!("the admission policy {POLICY_NAME} has not been looked at yet"),
        }
    }
}

impl Policy {
    /// Succeeds if Sessions made under it may be believed now.
    pub(crate) fn trust(&self, now: Timestamp) -> Result<(), String> {
        if self.since.is_none() {
            return Err(self.doubt.clone());
        }
        if now < self.settled_at {
            return Err(format!("the admission policy {POLICY_NAME} is too young"));
        }
        match self.proven {
            Some(proven) if now.duration_since(proven) <= PROOF_LIFETIME => Ok(()),
            Some(_) => Err(format!(
                "the admission policy {POLICY_NAME} was not tested lately"
            )),
            None => Err(self.doubt.clone()),
        }
    }

    /// Records the last change of policy and binding, and returns whether they have changed.
    fn update(&mut self, since: Result<Timestamp, String>, now: Timestamp) -> bool {
        let doubt = match &since {
            Ok(_) => format!("the admission policy {POLICY_NAME} is being tested"),
            Err(reason) => reason.clone(),
        };
        let since = since.ok();
        if self.since == since && (since.is_some() || self.doubt == doubt) {
            return false;
        }
        // The proof was of the previous policy, which may go on refusing for a moment.
        let is_old = since.is_some_and(|since| now.duration_since(since) > SURELY_EFFECTIVE_AFTER);
        self.since = since;
        self.settled_at = if is_old { now } else { now + EFFECTIVE_AFTER };
        self.proven = None;
        self.doubt = doubt;

        true
    }

    /// Returns whether an object made at `created` was made under the current policy.
    pub(crate) fn covers(&self, created: Timestamp) -> bool {
        self.since
            .is_some_and(|since| created.duration_since(since) >= EFFECTIVE_AFTER)
    }

    #[cfg(test)]
    pub(crate) fn proven_since(since: Timestamp, proven: Timestamp) -> Self {
        Self {
            since: Some(since),
            settled_at: since + EFFECTIVE_AFTER,
            proven: Some(proven),
            doubt: String::new(),
        }
    }
}

/// Watches and tests the policy until it is aborted.
pub(crate) async fn follow(client: Client, namespace: String, policy: watch::Sender<Policy>) {
    let by_name = || index::watch_config().fields(&format!("metadata.name={POLICY_NAME}"));
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let of_policy = watcher(policies, by_name())
        .default_backoff()
        .map_ok(|event| ObjectEvent::of(event, narrowing_of_policy));
    let of_binding = watcher(bindings, by_name())
        .default_backoff()
        .map_ok(|event| ObjectEvent::of(event, narrowing_of_binding));
    let mut of_policy = std::pin::pin!(of_policy);
    let mut of_binding = std::pin::pin!(of_binding);

    let mut policy_seen = ObjectPresence::default();
    let mut binding_seen = ObjectPresence::default();
    let mut next_check = tokio::time::Instant::now();
    loop {
        tokio::select! {
            Some(seen) = of_policy.next() => policy_seen.update(seen),
            Some(seen) = of_binding.next() => binding_seen.update(seen),
            () = tokio::time::sleep_until(next_check) => {
                next_check = tokio::time::Instant::now() + check(&client, &namespace, &policy).await;
                continue;
            }
        }
        let since = match (policy_seen.since(), binding_seen.since()) {
            (Ok(policy), Ok(binding)) => Ok(policy.max(binding)),
            (Err(reason), _) => Err(format!("the admission policy {POLICY_NAME} {reason}")),
            (_, Err(reason)) => Err(format!(
                "the binding of the admission policy {POLICY_NAME} {reason}"
            )),
        };
        if policy.send_if_modified(|known| known.update(since, Timestamp::now())) {
            next_check = tokio::time::Instant::now();
        }
    }
}

/// Tests once and returns the pause before the next test.
async fn check(client: &Client, namespace: &str, policy: &watch::Sender<Policy>) -> Duration {
    let begin = Timestamp::now();
    let tested = tokio::time::timeout(CHECK_TIMEOUT, try_to_forge(client, namespace)).await;
    match tested {
        // The policy is narrowed or missing: refusals in this namespace prove nothing.
        Ok(Ok(_)) if policy.borrow().since.is_none() => CHECK_INTERVAL,
        // The previous policy may have refused.
        Ok(Ok(None)) if begin < policy.borrow().settled_at => RETRY_INTERVAL,
        Ok(Ok(None)) => {
            policy.send_modify(|known| {
                if known.proven.is_none() {
                    tracing::info!("Forged sessions are refused by the admission policy");
                }
                known.proven = Some(begin);
            });
            CHECK_INTERVAL
        }
        Ok(Ok(Some(field))) => {
            policy.send_modify(|known| {
                if known.proven.is_some() {
                    tracing::warn!(field, "Forged session would be accepted");
                }
                known.proven = None;
                known.doubt = format!(
                    "the API server would accept a Session with a forged {field}: the admission \
                     policy {POLICY_NAME} is not in force"
                );
            });
            RETRY_INTERVAL
        }
        // An unreachable API server proves nothing; an old proof expires by itself.
        Ok(Err(error)) => {
            tracing::debug!(%error, "Cannot test the admission policy");
            RETRY_INTERVAL
        }
        Err(_) => RETRY_INTERVAL,
    }
}

/// Returns the first field that could be forged.
async fn try_to_forge(
    client: &Client,
    namespace: &str,
) -> Result<Option<&'static str>, kube::Error> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let sessions: Api<Session> = Api::namespaced(client.clone(), namespace);
    let review = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let own = review
        .status
        .and_then(|status| status.user_info)
        .map(|user| UserInfo {
            username: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        })
        .unwrap_or_default();

    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (field, user) in forgeries(&own) {
        let session = Session {
            metadata: ObjectMeta {
                generate_name: Some("forged-".into()),
                ..ObjectMeta::default()
            },
            spec: SessionSpec {
                user,
                key_hash: "0".repeat(64),
                client_version: VERSION.into(),
                renews: None,
            },
            status: None,
        };
        match sessions.create(&params, &session).await {
            Ok(_) => return Ok(Some(field)),
            Err(kube::Error::Api(status)) if is_refusal(&status.message) => {}
            Err(error) => return Err(error),
        }
    }

    Ok(None)
}

fn is_refusal(message: &str) -> bool {
    message.contains(&format!("ValidatingAdmissionPolicy '{POLICY_NAME}'"))
        && message.contains("denied request")
}

/// Users with one forged field each.
fn forgeries(own: &UserInfo) -> [(&'static str, UserInfo); 4] {
    let mut groups = own.groups.clone();
    groups.push("system:masters".into());
    let mut extra: BTreeMap<String, Vec<String>> = own.extra.clone();
    extra.insert("tp.internal/forged".into(), vec!["yes".into()]);

    [
        (
            "username",
            UserInfo {
                username: format!("{}-forged", own.username),
                ..own.clone()
            },
        ),
        (
            "uid",
            UserInfo {
                uid: format!("{}-forged", own.uid),
                ..own.clone()
            },
        ),
        (
            "groups",
            UserInfo {
                groups,
                ..own.clone()
            },
        ),
        (
            "extra",
            UserInfo {
                extra,
                ..own.clone()
            },
        ),
    ]
}

#[cfg(test)]
mod tests;

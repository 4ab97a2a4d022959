//! Whether the admission policy that proves `spec.user` is in force, and since when.
//!
//! It is not taken on trust: the manager tries to forge Sessions, as dry runs, and believes only
//! the refusals.

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

use presence::{Presence, Seen, narrowing_of_binding, narrowing_of_policy};

use crate::index;

mod presence;

/// A policy takes effect some tenths of a second after it was written, and time stamps have whole
/// seconds: what was made within this time of it proves nothing.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_secs(3);

/// A policy that was written so long ago is in effect, whatever the clocks say.
const OLD: SignedDuration = SignedDuration::from_secs(60);

const CHECK_INTERVAL: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// A proof older than this, because the API server was away, counts no more.
const PROOF_LIFETIME: SignedDuration = SignedDuration::from_secs(180);

/// What is known of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Since when policy and binding are as they are; none while one of them is missing.
    pub(crate) since: Option<Timestamp>,
    /// From when, by this replica's clock, a refusal is that of the policy as it is.
    settles: Timestamp,
    /// When forged Sessions were last refused.
    proven: Option<Timestamp>,
    /// Why it is not proven.
    doubt: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            since: None,
            settles: Timestamp::default(),
            proven: None,
            doubt: format!("the admission policy {POLICY_NAME} has not been looked at yet"),
        }
    }
}

impl Policy {
    /// Whether Sessions made under it may be believed now.
    pub(crate) fn trust(&self, now: Timestamp) -> Result<(), String> {
        if self.since.is_none() {
            return Err(self.doubt.clone());
        }
        if now < self.settles {
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

    /// Takes notice of policy and binding, and returns whether they have changed.
    fn note(&mut self, since: Result<Timestamp, String>, now: Timestamp) -> bool {
        let doubt = match &since {
            Ok(_) => format!("the admission policy {POLICY_NAME} is being tested"),
            Err(reason) => reason.clone(),
        };
        let since = since.ok();
        if self.since == since && (since.is_some() || self.doubt == doubt) {
            return false;
        }
        // Whatever was proven was proven of another policy, and its refusals may go on for a moment.
        let is_old = since.is_some_and(|since| now.duration_since(since) > OLD);
        self.since = since;
        self.settles = if is_old { now } else { now + GRACE };
        self.proven = None;
        self.doubt = doubt;

        true
    }

    /// Whether an object made at `created` was made under the policy as it is now.
    pub(crate) fn covers(&self, created: Timestamp) -> bool {
        self.since
            .is_some_and(|since| created.duration_since(since) >= GRACE)
    }

    #[cfg(test)]
    pub(crate) fn proven_since(since: Timestamp, proven: Timestamp) -> Self {
        Self {
            since: Some(since),
            settles: since + GRACE,
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
        .map_ok(|event| Seen::of(event, narrowing_of_policy));
    let of_binding = watcher(bindings, by_name())
        .default_backoff()
        .map_ok(|event| Seen::of(event, narrowing_of_binding));
    let mut of_policy = std::pin::pin!(of_policy);
    let mut of_binding = std::pin::pin!(of_binding);

    let mut policy_seen = Presence::default();
    let mut binding_seen = Presence::default();
    let mut next_check = tokio::time::Instant::now();
    loop {
        tokio::select! {
            Some(seen) = of_policy.next() => policy_seen.note(seen),
            Some(seen) = of_binding.next() => binding_seen.note(seen),
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
        if policy.send_if_modified(|known| known.note(since, Timestamp::now())) {
            next_check = tokio::time::Instant::now();
        }
    }
}

/// Tests once and returns how long to wait before the next time.
async fn check(client: &Client, namespace: &str, policy: &watch::Sender<Policy>) -> Duration {
    let begin = Timestamp::now();
    let tested = tokio::time::timeout(CHECK_TIMEOUT, try_to_forge(client, namespace)).await;
    match tested {
        // Narrowed, or away: whatever was refused here.
        Ok(Ok(_)) if policy.borrow().since.is_none() => CHECK_INTERVAL,
        // Refused by what was there before, perhaps.
        Ok(Ok(None)) if begin < policy.borrow().settles => RETRY,
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
            RETRY
        }
        // Unreachable proves nothing in either direction; an old proof runs out by itself.
        Ok(Err(error)) => {
            tracing::debug!(%error, "Cannot test the admission policy");
            RETRY
        }
        Err(_) => RETRY,
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

/// One lie each.
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

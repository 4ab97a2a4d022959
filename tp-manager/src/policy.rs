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
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::watch;
use tp_proto::{
    VERSION,
    crd::{POLICY_NAME, Session, SessionSpec, UserInfo},
};

use crate::index;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

impl Policy {
    /// Whether Sessions made under it may be believed now.
    pub(crate) fn trust(&self, now: Timestamp) -> Result<(), String> {
        if self.since.is_none() {
            return Err(format!(
                "the admission policy {POLICY_NAME} or its binding is missing"
            ));
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
    fn note(&mut self, since: Option<Timestamp>, now: Timestamp) -> bool {
        if self.since == since {
            return false;
        }
        // Whatever was proven was proven of another policy, and its refusals may go on for a moment.
        let is_old = since.is_some_and(|since| now.duration_since(since) > OLD);
        self.since = since;
        self.settles = if is_old { now } else { now + GRACE };
        self.proven = None;
        self.doubt = format!("the admission policy {POLICY_NAME} is being tested");

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
        .map_ok(|event| Seen::of(event, |object| object.metadata));
    let of_binding = watcher(bindings, by_name())
        .default_backoff()
        .map_ok(|event| Seen::of(event, |object| object.metadata));
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
            (Some(policy), Some(binding)) => Some(policy.max(binding)),
            _ => None,
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
                    tracing::warn!(field, "A forged session would be accepted");
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

/// An event of a watch on one object.
enum Seen {
    Present(Version),
    Absent,
    ListBegins,
    ListEnds,
}

impl Seen {
    fn of<K>(event: Event<K>, metadata: impl Fn(K) -> ObjectMeta) -> Self {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                Self::Present(Version::of(metadata(object)))
            }
            Event::Delete(_) => Self::Absent,
            Event::Init => Self::ListBegins,
            Event::InitDone => Self::ListEnds,
        }
    }
}

/// What an object demands, told from what it demanded before.
#[derive(Debug)]
struct Version {
    uid: Option<String>,
    /// Counts changes of the specification.
    generation: Option<i64>,
    since: Option<Timestamp>,
}

impl Version {
    fn of(metadata: ObjectMeta) -> Self {
        Self {
            since: last_change(&metadata),
            uid: metadata.uid,
            generation: metadata.generation,
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.generation.is_some() && (&self.uid, self.generation) == (&other.uid, other.generation)
    }
}

/// Since when one object is as it is.
#[derive(Debug, Default)]
struct Presence {
    version: Option<Version>,
    in_list: bool,
}

impl Presence {
    fn note(&mut self, seen: Result<Seen, watcher::Error>) {
        match seen {
            Ok(Seen::Present(version)) => {
                // Applying what is there already may change its time stamps, and nothing else.
                if !self
                    .version
                    .as_ref()
                    .is_some_and(|known| known.is(&version))
                {
                    self.version = Some(version);
                }
                self.in_list = true;
            }
            Ok(Seen::Absent) => self.version = None,
            Ok(Seen::ListBegins) => self.in_list = false,
            Ok(Seen::ListEnds) if !self.in_list => self.version = None,
            Ok(Seen::ListEnds) => {}
            Err(error) => tracing::debug!(%error, "The watch of the policy was interrupted"),
        }
    }

    fn since(&self) -> Option<Timestamp> {
        self.version.as_ref()?.since
    }
}

/// When the object was made or last changed, its status aside.
fn last_change(metadata: &ObjectMeta) -> Option<Timestamp> {
    let created = metadata.creation_timestamp.as_ref()?.0;
    let changed = metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
        .filter_map(|entry| entry.time.as_ref())
        .map(|time| time.0)
        .max();

    Some(changed.map_or(created, |changed| changed.max(created)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn nobody_is_trusted_without_a_policy() {
        assert!(Policy::default().trust(at(0)).is_err());
    }

    #[test]
    fn a_proof_runs_out() {
        let policy = Policy::proven_since(at(0), at(10));

        assert!(policy.trust(at(20)).is_ok());
        assert!(policy.trust(at(1000)).is_err());
    }

    #[test]
    fn a_refusal_right_after_a_change_proves_nothing() {
        let mut policy = Policy::proven_since(at(0), at(100));

        assert!(policy.note(Some(at(110)), at(111)));

        assert!(policy.trust(at(111)).is_err());
        assert_eq!(policy.settles, at(111) + GRACE);
        assert!(!policy.note(Some(at(110)), at(112)));
    }

    #[test]
    fn an_old_policy_is_in_effect_when_a_replica_starts() {
        let mut policy = Policy::default();

        policy.note(Some(at(0)), at(1000));

        assert_eq!(policy.settles, at(1000));
    }

    #[test]
    fn what_is_as_young_as_the_policy_is_not_covered() {
        let policy = Policy::proven_since(at(100), at(110));

        assert!(!policy.covers(at(99)));
        assert!(!policy.covers(at(102)));
        assert!(policy.covers(at(103)));
    }

    #[test]
    fn a_policy_that_was_edited_counts_from_the_edit() {
        let metadata: ObjectMeta = serde_json::from_value(serde_json::json!({
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [
                {"manager": "tp", "time": "2026-01-01T00:00:00Z"},
                {"manager": "kubectl-edit", "time": "2026-01-02T00:00:00Z"},
                {"manager": "controller", "time": "2026-01-03T00:00:00Z", "subresource": "status"},
            ],
        }))
        .unwrap();

        let changed = last_change(&metadata).unwrap();

        assert_eq!(changed, "2026-01-02T00:00:00Z".parse().unwrap());
    }

    #[test]
    fn a_policy_that_is_missing_from_a_new_listing_is_gone() {
        let mut presence = Presence::default();
        presence.note(Ok(Seen::Present(version("a", 1, 0))));

        presence.note(Ok(Seen::ListBegins));
        assert_eq!(presence.since(), Some(at(0)));
        presence.note(Ok(Seen::ListEnds));

        assert_eq!(presence.since(), None);
    }

    /// As `tp install` does when it is called twice.
    #[test]
    fn applying_the_same_again_is_no_change_and_an_edit_or_another_object_is() {
        let mut presence = Presence::default();
        presence.note(Ok(Seen::Present(version("a", 1, 0))));

        presence.note(Ok(Seen::Present(version("a", 1, 6))));
        assert_eq!(presence.since(), Some(at(0)));
        presence.note(Ok(Seen::Present(version("a", 2, 7))));
        assert_eq!(presence.since(), Some(at(7)));
        presence.note(Ok(Seen::Present(version("b", 2, 8))));
        assert_eq!(presence.since(), Some(at(8)));
    }

    fn version(uid: &str, generation: i64, since: i64) -> Version {
        Version {
            uid: Some(uid.into()),
            generation: Some(generation),
            since: Some(at(since)),
        }
    }

    #[test]
    fn every_forgery_differs_in_one_field() {
        let own = UserInfo {
            username: "system:serviceaccount:tp-system:tp-manager".into(),
            ..UserInfo::default()
        };

        for (field, forged) in forgeries(&own) {
            assert_ne!(forged, own, "{field}");
        }
    }
}

//! The `Session` objects of the cluster, and which of them may connect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::Deserialize as _;
use tokio::sync::watch;
use tp_proto::crd::{SESSION_LIFETIME_SECONDS, Session, SessionSpec};
use tp_transport::{Admission, KeyHash, Refusal, SessionRef};

use crate::{access::User, index::SyncedPart, policy::Policy};

const LIFETIME: SignedDuration = SignedDuration::from_secs(SESSION_LIFETIME_SECONDS);

/// What the manager needs of a `Session`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) session: SessionRef,
    created: Timestamp,
    claim: Result<Claim, &'static str>,
}

#[derive(Debug, Clone)]
struct Claim {
    user: Arc<User>,
    key: KeyHash,
}

impl Entry {
    fn of(object: &DynamicObject) -> Option<Self> {
        let session = SessionRef {
            namespace: object.namespace()?,
            name: object.name_any(),
            uid: object.uid()?,
        };
        let created = object.metadata.creation_timestamp.as_ref()?.0;

        Some(Self {
            session,
            created,
            claim: claim(object),
        })
    }
}

/// Read by hand: one malformed object must not hide the others.
fn claim(object: &DynamicObject) -> Result<Claim, &'static str> {
    if object.metadata.deletion_timestamp.is_some() {
        return Err("is being deleted");
    }
    // Moves with every change of the specification, however it was made.
    if object.metadata.generation != Some(1) {
        return Err("was changed after it was made");
    }
    let spec = object.data.get("spec").ok_or("has no specification")?;
    let spec = SessionSpec::deserialize(spec).map_err(|_| "has no valid specification")?;
    let key = spec.key_hash.parse().map_err(|_| "has no valid key hash")?;
    if spec.user.username.is_empty() {
        return Err("names no user");
    }

    Ok(Claim {
        user: Arc::new(User::new(spec.user)),
        key,
    })
}

#[derive(Debug, Default)]
struct State {
    by_uid: BTreeMap<String, Entry>,
    by_key: BTreeMap<KeyHash, BTreeSet<String>>,
}

impl State {
    fn insert(&mut self, entry: Entry) {
        self.remove(&entry.session.uid);
        let uid = entry.session.uid.clone();
        if let Ok(claim) = &entry.claim {
            self.by_key
                .entry(claim.key)
                .or_default()
                .insert(uid.clone());
        }
        self.by_uid.insert(uid, entry);
    }

    fn remove(&mut self, uid: &str) {
        let Some(entry) = self.by_uid.remove(uid) else {
            return;
        };
        if let Ok(claim) = &entry.claim
            && let Some(users) = self.by_key.get_mut(&claim.key)
        {
            users.remove(uid);
            if users.is_empty() {
                self.by_key.remove(&claim.key);
            }
        }
    }

    /// Who had this key first keeps it.
    fn is_first_with_key(&self, entry: &Entry, key: &KeyHash) -> bool {
        let rank = |entry: &Entry| (entry.created, entry.session.uid.clone());
        self.by_key
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.by_uid.get(uid))
            .all(|other| rank(entry) <= rank(other))
    }
}

/// The Sessions, shared; every change moves `revision`.
#[derive(Debug)]
pub(crate) struct Sessions {
    state: RwLock<State>,
    policy: watch::Receiver<Policy>,
    revision: watch::Sender<u64>,
}

impl Sessions {
    pub(crate) fn new(policy: watch::Receiver<Policy>) -> Self {
        Self {
            state: RwLock::default(),
            policy,
            revision: watch::Sender::new(0),
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Whether this session, once admitted, may stay; an error says why not. While the policy is
    /// away, those stay who were admitted before.
    pub(crate) fn standing(&self, session: &SessionRef, now: Timestamp) -> Result<(), String> {
        let policy = self.policy.borrow().clone();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let entry = find(&state, session)?;
        if policy.since.is_some() {
            covered(entry, &policy)?;
        }

        valid(entry, now).map(|_| ())
    }

    /// The user of a session that may connect.
    pub(crate) fn user(&self, session: &SessionRef) -> Option<Arc<User>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let entry = find(&state, session).ok()?;
        let claim = entry.claim.as_ref().ok()?;

        Some(Arc::clone(&claim.user))
    }

    /// Sessions whose time is over.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<SessionRef> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let old = |entry: &&Entry| now.duration_since(entry.created) > LIFETIME;
        state
            .by_uid
            .values()
            .filter(old)
            .map(|entry| entry.session.clone())
            .collect()
    }

    fn verdict(
        &self,
        session: &SessionRef,
        key: Option<&KeyHash>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let policy = self.policy.borrow().clone();
        policy.trust(now).map_err(Refusal::for_now)?;
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        // Made just now, it may be on its way here.
        let entry = find(&state, session).map_err(Refusal::for_now)?;
        covered(entry, &policy).map_err(Refusal::new)?;
        let claim = valid(entry, now).map_err(Refusal::new)?;
        let Some(key) = key else {
            return Ok(());
        };
        if claim.key != *key {
            return Err(Refusal::new(format!(
                "the key is not that of Session {session}"
            )));
        }
        if !state.is_first_with_key(entry, key) {
            return Err(Refusal::new(format!(
                "the key of Session {session} is in use by another Session"
            )));
        }

        Ok(())
    }

    /// Keeps the Sessions until it is aborted.
    pub(crate) async fn follow(&self, client: Client, mut synced: SyncedPart) {
        let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Session>(&()));
        let events = watcher(api, watcher::Config::default()).default_backoff();
        self.apply(events, || synced.done()).await;
    }

    async fn apply(
        &self,
        events: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
        mut listed: impl FnMut(),
    ) {
        let mut listing = Vec::new();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listing.extend(Entry::of(&object));
                    continue;
                }
                Ok(Event::InitDone) => {
                    let mut state = State::default();
                    for entry in listing.drain(..) {
                        state.insert(entry);
                    }
                    self.write(|known| *known = state);
                    listed();
                }
                Ok(Event::Apply(object)) => {
                    if let Some(entry) = Entry::of(&object) {
                        self.write(|state| state.insert(entry));
                    }
                }
                Ok(Event::Delete(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    self.write(|state| state.remove(&uid));
                }
                Err(error) => tracing::debug!(%error, "The watch of Sessions was interrupted"),
            }
        }
    }

    fn write(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        self.revision.send_modify(|revision| *revision += 1);
    }
}

fn find<'a>(state: &'a State, session: &SessionRef) -> Result<&'a Entry, String> {
    state
        .by_uid
        .get(&session.uid)
        .filter(|entry| entry.session == *session)
        .ok_or_else(|| format!("Session {session} does not exist"))
}

fn covered(entry: &Entry, policy: &Policy) -> Result<(), String> {
    if policy.covers(entry.created) {
        return Ok(());
    }
    Err(format!(
        "Session {} is older than the admission policy: make a new one",
        entry.session
    ))
}

fn valid(entry: &Entry, now: Timestamp) -> Result<&Claim, String> {
    let session = &entry.session;
    if now.duration_since(entry.created) > LIFETIME {
        return Err(format!(
            "Session {session} is older than {} hours: make a new one",
            LIFETIME.as_hours()
        ));
    }
    entry
        .claim
        .as_ref()
        .map_err(|reason| format!("Session {session} {reason}"))
}

/// The tunnel's questions.
pub(crate) struct Gate(pub(crate) Arc<Sessions>);

impl Admission for Gate {
    fn known(&self, session: &SessionRef) -> Result<(), Refusal> {
        self.0.verdict(session, None, Timestamp::now())
    }

    fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal> {
        self.0.verdict(session, Some(key), Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const POLICY: i64 = 1_700_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(POLICY + second).unwrap()
    }

    fn key(digit: char) -> KeyHash {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn reference(uid: &str) -> SessionRef {
        SessionRef {
            namespace: "shop".into(),
            name: format!("alice-{uid}"),
            uid: uid.into(),
        }
    }

    fn object(uid: &str, created: i64, key: char) -> Value {
        json!({
            "apiVersion": "tp.internal/v1alpha1",
            "kind": "Session",
            "metadata": {
                "name": format!("alice-{uid}"),
                "namespace": "shop",
                "uid": uid,
                "generation": 1,
                "creationTimestamp": at(created).to_string(),
            },
            "spec": {
                "user": {"username": "alice"},
                "keyHash": key.to_string().repeat(64),
                "clientVersion": "0.1.0",
            },
        })
    }

    async fn sessions(objects: Vec<Value>) -> Sessions {
        let policy = watch::Sender::new(Policy::proven_since(at(0), at(100)));
        let sessions = Sessions::new(policy.subscribe());
        let events = objects
            .into_iter()
            .map(|object| Ok(Event::Apply(serde_json::from_value(object).unwrap())));
        sessions.apply(futures::stream::iter(events), || {}).await;
        sessions
    }

    fn reason(sessions: &Sessions, uid: &str, digit: char) -> String {
        let verdict = sessions.verdict(&reference(uid), Some(&key(digit)), at(120));
        verdict.unwrap_err().reason
    }

    #[tokio::test]
    async fn a_session_made_under_the_policy_is_admitted_with_its_key() {
        let sessions = sessions(vec![object("a", 50, '1')]).await;

        assert_eq!(
            sessions.verdict(&reference("a"), Some(&key('1')), at(120)),
            Ok(())
        );
        assert!(reason(&sessions, "a", '2').contains("key is not that of"));
    }

    #[tokio::test]
    async fn a_session_of_another_uid_or_name_does_not_exist() {
        let sessions = sessions(vec![object("a", 50, '1')]).await;
        let mut other = reference("a");
        other.name = "bob".into();

        let refusal = sessions.verdict(&other, None, at(120)).unwrap_err();

        assert!(refusal.reason.contains("does not exist"));
        assert!(refusal.retry);
    }

    #[tokio::test]
    async fn a_session_as_old_as_the_policy_is_void() {
        let sessions = sessions(vec![object("a", 1, '1')]).await;

        assert!(reason(&sessions, "a", '1').contains("older than the admission policy"));
    }

    #[tokio::test]
    async fn a_session_that_was_changed_is_void() {
        let mut changed = object("a", 50, '1');
        changed["metadata"]["generation"] = json!(2);
        let sessions = sessions(vec![changed]).await;

        assert!(reason(&sessions, "a", '1').contains("was changed"));
    }

    #[tokio::test]
    async fn a_session_without_a_valid_specification_is_void() {
        let mut broken = object("a", 50, '1');
        broken["spec"] = json!({"user": 7});
        let sessions = sessions(vec![broken, object("b", 50, '2')]).await;

        assert!(reason(&sessions, "a", '1').contains("no valid specification"));
        assert!(
            sessions
                .verdict(&reference("b"), Some(&key('2')), at(120))
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_key_belongs_to_the_session_that_had_it_first() {
        let sessions = sessions(vec![object("a", 60, '1'), object("b", 50, '1')]).await;

        assert!(reason(&sessions, "a", '1').contains("in use by another"));
        assert!(
            sessions
                .verdict(&reference("b"), Some(&key('1')), at(120))
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_session_ends_after_its_lifetime() {
        let sessions = sessions(vec![object("a", 50, '1')]).await;
        let later = at(50) + LIFETIME + SignedDuration::from_secs(1);

        assert!(sessions.standing(&reference("a"), at(120)).is_ok());
        assert!(sessions.standing(&reference("a"), later).is_err());
        assert_eq!(sessions.expired(later), [reference("a")]);
    }

    #[tokio::test]
    async fn who_is_connected_stays_while_the_policy_is_away_and_ends_when_it_returns() {
        let policy = watch::Sender::new(Policy::default());
        let sessions = Sessions::new(policy.subscribe());
        let event = Event::Apply(serde_json::from_value(object("a", 50, '1')).unwrap());
        sessions
            .apply(futures::stream::iter([Ok(event)]), || {})
            .await;

        assert!(sessions.standing(&reference("a"), at(120)).is_ok());
        assert!(sessions.verdict(&reference("a"), None, at(120)).is_err());
        policy.send_replace(Policy::proven_since(at(100), at(119)));
        assert!(sessions.standing(&reference("a"), at(120)).is_err());
    }

    #[tokio::test]
    async fn a_deleted_session_is_gone() {
        let sessions = sessions(vec![object("a", 50, '1')]).await;
        let event = Event::Delete(serde_json::from_value(object("a", 50, '1')).unwrap());

        sessions
            .apply(futures::stream::iter([Ok(event)]), || {})
            .await;

        assert!(sessions.standing(&reference("a"), at(120)).is_err());
    }
}

//! The `Session` objects of the cluster, and which of them may connect.
//!
//! A Session with `spec.renews` never connects. It proves, through the API server, the current
//! identity of another Session's user, and gives that Session a new lifetime. The objects alone
//! determine the renewal that counts, so all replicas agree and keep no state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
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
use tp_process::sync;
use tp_proto::crd::{SESSION_LIFETIME_SECONDS, Session, SessionSpec};
use tp_transport::{Admission, KeyHash, Refusal, SessionRef};

use crate::{
    access::User,
    index::{self, SyncedPart},
    policy::Policy,
};

const LIFETIME: SignedDuration = SignedDuration::from_secs(SESSION_LIFETIME_SECONDS);

/// The part of a `Session` that the manager needs.
#[derive(Debug, Clone)]
pub(crate) struct SessionRecord {
    pub(crate) session: SessionRef,
    created: Timestamp,
    is_deleted: bool,
    identity: Result<SessionIdentity, &'static str>,
}

#[derive(Debug, Clone)]
struct SessionIdentity {
    user: Arc<User>,
    key: KeyHash,
    /// UID of the Session that this one renews.
    renews: Option<String>,
}

/// A session that may stay: its user, and the start of its lifetime.
#[derive(Debug, Clone)]
pub(crate) struct ValidSession {
    pub(crate) user: Arc<User>,
    since: Timestamp,
}

impl ValidSession {
    fn of(record: &SessionRecord, identity: &SessionIdentity) -> Self {
        Self {
            user: Arc::clone(&identity.user),
            since: record.created,
        }
    }

    fn check_lifetime(&self, session: &SessionRef, now: Timestamp) -> Result<(), String> {
        if now.duration_since(self.since) <= LIFETIME {
            return Ok(());
        }
        Err(format!(
            "Session {session} was made, or renewed, more than {} hours ago: make a new one",
            LIFETIME.as_hours()
        ))
    }
}

impl SessionRecord {
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
            is_deleted: object.metadata.deletion_timestamp.is_some(),
            identity: read_identity(object),
        })
    }
}

/// Parses one object at a time: a malformed one must not hide the others.
fn read_identity(object: &DynamicObject) -> Result<SessionIdentity, &'static str> {
    if object.metadata.deletion_timestamp.is_some() {
        return Err("is being deleted");
    }
    // The API server increments it with every change of the specification.
    if object.metadata.generation != Some(1) {
        return Err("was changed after it was made");
    }
    let spec = object.data.get("spec").ok_or("has no specification")?;
    let spec = SessionSpec::deserialize(spec).map_err(|_| "has no valid specification")?;
    let key = spec.key_hash.parse().map_err(|_| "has no valid key hash")?;
    if spec.user.username.is_empty() {
        return Err("names no user");
    }

    Ok(SessionIdentity {
        user: Arc::new(User::new(spec.user)),
        key,
        renews: spec.renews,
    })
}

#[derive(Debug, Default)]
struct State {
    by_uid: BTreeMap<String, SessionRecord>,
    /// UIDs of the Sessions with a key.
    by_key: BTreeMap<KeyHash, BTreeSet<String>>,
    /// UIDs of unverified renewals, by the UID of the Session that they name.
    renewals: BTreeMap<String, BTreeSet<String>>,
}

impl State {
    fn insert(&mut self, record: SessionRecord) {
        self.remove(&record.session.uid);
        let uid = record.session.uid.clone();
        if let Ok(identity) = &record.identity {
            let uids = match &identity.renews {
                Some(renewed) => self.renewals.entry(renewed.clone()).or_default(),
                None => self.by_key.entry(identity.key).or_default(),
            };
            uids.insert(uid.clone());
        }
        self.by_uid.insert(uid, record);
    }

    fn remove(&mut self, uid: &str) {
        let Some(record) = self.by_uid.remove(uid) else {
            return;
        };
        let Ok(identity) = &record.identity else {
            return;
        };
        match &identity.renews {
            Some(renewed) => remove_from(&mut self.renewals, renewed, uid),
            None => remove_from(&mut self.by_key, &identity.key, uid),
        }
    }

    /// The renewals of this Session: by the same user, in the same namespace, for the same key.
    fn renewals_of<'a>(
        &'a self,
        record: &'a SessionRecord,
        identity: &'a SessionIdentity,
    ) -> impl Iterator<Item = (&'a SessionRecord, &'a SessionIdentity)> {
        let uids = self.renewals.get(&record.session.uid);
        uids.into_iter()
            .flatten()
            .filter_map(|uid| self.by_uid.get(uid))
            .filter_map(|renewal| Some((renewal, renewal.identity.as_ref().ok()?)))
            .filter(|(renewal, renewed)| {
                renewal.session.namespace == record.session.namespace
                    && renewed.user.is_same_person(&identity.user)
                    && renewed.key == identity.key
            })
    }

    /// Takes user and start from the newest renewal that the policy covers, or else from the
    /// Session.
    fn valid_session(
        &self,
        record: &SessionRecord,
        identity: &SessionIdentity,
        policy: &Policy,
    ) -> ValidSession {
        let newest = self
            .renewals_of(record, identity)
            .filter(|(renewal, _)| policy.covers(renewal.created))
            .max_by_key(|(renewal, _)| renewal.created);
        let (record, identity) = newest.unwrap_or((record, identity));

        ValidSession::of(record, identity)
    }

    fn is_expired(&self, record: &SessionRecord, now: Timestamp) -> bool {
        // Includes renewals without proof: keeping an object for longer costs nothing.
        let identity = record.identity.as_ref().ok();
        let renewals = identity.map(|identity| self.renewals_of(record, identity));
        let since = renewals
            .into_iter()
            .flatten()
            .map(|(renewal, _)| renewal.created)
            .fold(record.created, Timestamp::max);

        now.duration_since(since) > LIFETIME
    }

    /// Returns whether this is the oldest Session with the key, which keeps it.
    fn is_first_with_key(&self, record: &SessionRecord, key: &KeyHash) -> bool {
        let rank = |record: &SessionRecord| (record.created, record.session.uid.clone());
        self.by_key
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.by_uid.get(uid))
            .all(|other| rank(record) <= rank(other))
    }
}

fn remove_from<K: Ord>(uids: &mut BTreeMap<K, BTreeSet<String>>, key: &K, uid: &str) {
    if let Some(of_key) = uids.get_mut(key) {
        of_key.remove(uid);
        if of_key.is_empty() {
            uids.remove(key);
        }
    }
}

/// The shared Sessions; every change increments `revision`.
#[derive(Debug)]
pub(crate) struct Sessions {
    state: RwLock<State>,
    policy: watch::Receiver<Policy>,
    revision: watch::Sender<u64>,
    is_listed: AtomicBool,
}

impl Sessions {
    pub(crate) fn new(policy: watch::Receiver<Policy>) -> Self {
        Self {
            state: RwLock::default(),
            policy,
            revision: watch::Sender::new(0),
            is_listed: AtomicBool::new(false),
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Checks again a session that was admitted; the error says why it may not stay. While the
    /// policy is missing, admitted sessions stay as they were last `known`.
    pub(crate) fn revalidate(
        &self,
        session: &SessionRef,
        known: Option<&ValidSession>,
        now: Timestamp,
    ) -> Result<ValidSession, String> {
        let policy = self.policy.borrow().clone();
        let state = self.read();
        let record = find(&state, session)?;
        let identity = connectable_identity(record)?;
        let valid = if policy.since.is_some() {
            check_covered(record, &policy)?;
            state.valid_session(record, identity, &policy)
        } else {
            known
                .cloned()
                .unwrap_or_else(|| ValidSession::of(record, identity))
        };
        valid.check_lifetime(session, now)?;

        Ok(valid)
    }

    /// Returns whether what was made at this time may be believed: after the current policy was. While
    /// the policy is missing, nobody connects, and what is there stays.
    pub(crate) fn is_covered(&self, created: Timestamp) -> bool {
        let policy = self.policy.borrow();

        policy.since.is_none() || policy.covers(created)
    }

    /// Returns whether the object of a session was deleted before its last `known` lifetime is
    /// over: that is meant to end the session.
    pub(crate) fn is_deleted(
        &self,
        session: &SessionRef,
        known: &ValidSession,
        now: Timestamp,
    ) -> bool {
        let state = self.read();
        let is_there = find(&state, session).is_ok_and(|record| !record.is_deleted);

        !is_there && known.check_lifetime(session, now).is_ok()
    }

    /// Returns whether the object is there, or may be: before the first listing all may.
    pub(crate) fn exists(&self, session: &SessionRef) -> bool {
        !self.is_listed.load(Ordering::Acquire) || find(&self.read(), session).is_ok()
    }

    /// Sessions, and renewals, whose lifetime is over.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<SessionRef> {
        let state = self.read();
        state
            .by_uid
            .values()
            .filter(|record| state.is_expired(record, now))
            .map(|record| record.session.clone())
            .collect()
    }

    fn check_admission(
        &self,
        session: &SessionRef,
        key: Option<&KeyHash>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let policy = self.policy.borrow().clone();
        policy.trust(now).map_err(Refusal::for_now)?;
        let state = self.read();
        // The watch may not have delivered a new Session yet.
        let record = find(&state, session).map_err(Refusal::for_now)?;
        check_covered(record, &policy).map_err(Refusal::new)?;
        let identity = connectable_identity(record).map_err(Refusal::new)?;
        let valid = state.valid_session(record, identity, &policy);
        valid.check_lifetime(session, now).map_err(Refusal::new)?;
        let Some(key) = key else {
            return Ok(());
        };
        if identity.key != *key {
            return Err(Refusal::new(format!(
                "the key is not that of Session {session}"
            )));
        }
        if !state.is_first_with_key(record, key) {
            return Err(Refusal::new(format!(
                "the key of Session {session} is in use by another Session"
            )));
        }

        Ok(())
    }

    /// Watches the Sessions until it is aborted.
    pub(crate) async fn follow(&self, client: Client, mut synced: SyncedPart) {
        let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Session>(&()));
        let events = watcher(api, index::watch_config()).default_backoff();
        self.apply(events, || synced.done()).await;
    }

    pub(crate) async fn apply(
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
                    listing.extend(SessionRecord::of(&object));
                    continue;
                }
                Ok(Event::InitDone) => {
                    let mut state = State::default();
                    for record in listing.drain(..) {
                        state.insert(record);
                    }
                    self.write(|known| *known = state);
                    self.is_listed.store(true, Ordering::Release);
                    listed();
                }
                Ok(Event::Apply(object)) => {
                    if let Some(record) = SessionRecord::of(&object) {
                        self.write(|state| state.insert(record));
                    }
                }
                Ok(Event::Delete(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    self.write(|state| state.remove(&uid));
                }
                Err(error) => tracing::debug!(%error, "Watch of Sessions interrupted"),
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        sync::read(&self.state)
    }

    fn write(&self, change: impl FnOnce(&mut State)) {
        change(&mut sync::write(&self.state));
        self.revision.send_modify(|revision| *revision += 1);
    }
}

fn find<'a>(state: &'a State, session: &SessionRef) -> Result<&'a SessionRecord, String> {
    state
        .by_uid
        .get(&session.uid)
        .filter(|record| record.session == *session)
        .ok_or_else(|| format!("Session {session} does not exist"))
}

fn check_covered(record: &SessionRecord, policy: &Policy) -> Result<(), String> {
    if policy.covers(record.created) {
        return Ok(());
    }
    Err(format!(
        "Session {} is older than the admission policy: make a new one",
        record.session
    ))
}

fn connectable_identity(record: &SessionRecord) -> Result<&SessionIdentity, String> {
    let session = &record.session;
    match &record.identity {
        Ok(identity) if identity.renews.is_none() => Ok(identity),
        Ok(_) => Err(format!(
            "Session {session} renews another one: nobody connects with it"
        )),
        Err(reason) => Err(format!("Session {session} {reason}")),
    }
}

/// Decides for the tunnel server who is admitted.
pub(crate) struct SessionAdmission(pub(crate) Arc<Sessions>);

impl Admission for SessionAdmission {
    fn known(&self, session: &SessionRef) -> Result<(), Refusal> {
        self.0.check_admission(session, None, Timestamp::now())
    }

    fn admit(&self, session: &SessionRef, key: &KeyHash) -> Result<(), Refusal> {
        self.0.check_admission(session, Some(key), Timestamp::now())
    }
}

#[cfg(test)]
mod tests;

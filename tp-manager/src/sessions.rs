//! The `Session` objects of the cluster, and which of them may connect.
//!
//! A Session with `spec.renews` never connects. It says, with the API server as its witness, who
//! the user of another Session is at the time, and gives that one another lifetime. Which renewal
//! counts follows from the objects alone, so all replicas agree and none has to remember.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, RwLock, RwLockReadGuard},
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

use crate::{
    access::User,
    index::{self, SyncedPart},
    policy::Policy,
    sync,
};

const LIFETIME: SignedDuration = SignedDuration::from_secs(SESSION_LIFETIME_SECONDS);

/// What the manager needs of a `Session`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) session: SessionRef,
    created: Timestamp,
    is_deleted: bool,
    claim: Result<Claim, &'static str>,
}

#[derive(Debug, Clone)]
struct Claim {
    user: Arc<User>,
    key: KeyHash,
    /// UID of the Session that this one renews.
    renews: Option<String>,
}

/// A session that may stay: as whom, and since when its lifetime counts.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) user: Arc<User>,
    since: Timestamp,
}

impl Standing {
    fn of(entry: &Entry, claim: &Claim) -> Self {
        Self {
            user: Arc::clone(&claim.user),
            since: entry.created,
        }
    }

    fn lasts(&self, session: &SessionRef, now: Timestamp) -> Result<(), String> {
        if now.duration_since(self.since) <= LIFETIME {
            return Ok(());
        }
        Err(format!(
            "Session {session} was made, or renewed, more than {} hours ago: make a new one",
            LIFETIME.as_hours()
        ))
    }
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
            is_deleted: object.metadata.deletion_timestamp.is_some(),
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
        renews: spec.renews,
    })
}

#[derive(Debug, Default)]
struct State {
    by_uid: BTreeMap<String, Entry>,
    /// UIDs of the Sessions with a key.
    by_key: BTreeMap<KeyHash, BTreeSet<String>>,
    /// UIDs of what claims to renew a Session, by the UID of that one.
    renewals: BTreeMap<String, BTreeSet<String>>,
}

impl State {
    fn insert(&mut self, entry: Entry) {
        self.remove(&entry.session.uid);
        let uid = entry.session.uid.clone();
        if let Ok(claim) = &entry.claim {
            let uids = match &claim.renews {
                Some(renewed) => self.renewals.entry(renewed.clone()).or_default(),
                None => self.by_key.entry(claim.key).or_default(),
            };
            uids.insert(uid.clone());
        }
        self.by_uid.insert(uid, entry);
    }

    fn remove(&mut self, uid: &str) {
        let Some(entry) = self.by_uid.remove(uid) else {
            return;
        };
        let Ok(claim) = &entry.claim else {
            return;
        };
        match &claim.renews {
            Some(renewed) => remove_from(&mut self.renewals, renewed, uid),
            None => remove_from(&mut self.by_key, &claim.key, uid),
        }
    }

    /// What renews this Session: made by the same user, in the same namespace, for the same key.
    fn renewals_of<'a>(
        &'a self,
        entry: &'a Entry,
        claim: &'a Claim,
    ) -> impl Iterator<Item = (&'a Entry, &'a Claim)> {
        let uids = self.renewals.get(&entry.session.uid);
        uids.into_iter()
            .flatten()
            .filter_map(|uid| self.by_uid.get(uid))
            .filter_map(|renewal| Some((renewal, renewal.claim.as_ref().ok()?)))
            .filter(|(renewal, renewed)| {
                renewal.session.namespace == entry.session.namespace
                    && renewed.user.is_same_person(&claim.user)
                    && renewed.key == claim.key
            })
    }

    /// The newest renewal that the policy proves speaks for the Session; without one, it does.
    fn standing(&self, entry: &Entry, claim: &Claim, policy: &Policy) -> Standing {
        let newest = self
            .renewals_of(entry, claim)
            .filter(|(renewal, _)| policy.covers(renewal.created))
            .max_by_key(|(renewal, _)| renewal.created);
        let (entry, claim) = newest.unwrap_or((entry, claim));

        Standing::of(entry, claim)
    }

    fn is_over(&self, entry: &Entry, now: Timestamp) -> bool {
        // Also renewals that are not believed: keeping an object for longer costs nothing.
        let claim = entry.claim.as_ref().ok();
        let renewals = claim.map(|claim| self.renewals_of(entry, claim));
        let since = renewals
            .into_iter()
            .flatten()
            .map(|(renewal, _)| renewal.created)
            .fold(entry.created, Timestamp::max);

        now.duration_since(since) > LIFETIME
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

fn remove_from<K: Ord>(uids: &mut BTreeMap<K, BTreeSet<String>>, key: &K, uid: &str) {
    if let Some(of_key) = uids.get_mut(key) {
        of_key.remove(uid);
        if of_key.is_empty() {
            uids.remove(key);
        }
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

    /// What this session, once admitted, is by now; an error says why it may not stay. While the
    /// policy is away, those stay who were admitted before, as what was `known` of them.
    pub(crate) fn standing(
        &self,
        session: &SessionRef,
        known: Option<&Standing>,
        now: Timestamp,
    ) -> Result<Standing, String> {
        let policy = self.policy.borrow().clone();
        let state = self.read();
        let entry = find(&state, session)?;
        let claim = connectable(entry)?;
        let standing = if policy.since.is_some() {
            covered(entry, &policy)?;
            state.standing(entry, claim, &policy)
        } else {
            known.cloned().unwrap_or_else(|| Standing::of(entry, claim))
        };
        standing.lasts(session, now)?;

        Ok(standing)
    }

    /// Whether somebody deleted the object of a session whose time, as far as it was `known`, is not
    /// over: that is meant to end it.
    pub(crate) fn is_deleted(
        &self,
        session: &SessionRef,
        known: &Standing,
        now: Timestamp,
    ) -> bool {
        let state = self.read();
        let is_there = find(&state, session).is_ok_and(|entry| !entry.is_deleted);

        !is_there && known.lasts(session, now).is_ok()
    }

    /// Sessions, and renewals, whose time is over.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<SessionRef> {
        let state = self.read();
        state
            .by_uid
            .values()
            .filter(|entry| state.is_over(entry, now))
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
        let state = self.read();
        // Made just now, it may be on its way here.
        let entry = find(&state, session).map_err(Refusal::for_now)?;
        covered(entry, &policy).map_err(Refusal::new)?;
        let claim = connectable(entry).map_err(Refusal::new)?;
        let standing = state.standing(entry, claim, &policy);
        standing.lasts(session, now).map_err(Refusal::new)?;
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
        let events = watcher(api, index::watch_config()).default_backoff();
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

fn connectable(entry: &Entry) -> Result<&Claim, String> {
    let session = &entry.session;
    match &entry.claim {
        Ok(claim) if claim.renews.is_none() => Ok(claim),
        Ok(_) => Err(format!(
            "Session {session} renews another one: nobody connects with it"
        )),
        Err(reason) => Err(format!("Session {session} {reason}")),
    }
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
mod tests;

//! The Intercept objects in the cluster: made under a name that is known before, and swept by it.
//!
//! A request whose answer was lost may have made its object, or make it later. Such an object is taken
//! for the intercept's own where it is found at once. Otherwise its name is looked at until no request
//! can make it any more, for it would hold its ports as long as the Session lasts.

use std::{
    cmp, collections::BTreeMap, convert::Infallible, future::pending, sync::Arc, time::Duration,
};

use futures::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::{MAX_INTERCEPTS, UserInfo},
    fault::Fault,
};
use tp_transport::SessionRef;

use super::{
    super::cluster::{Deletion, is_refusal},
    EntryPhase, MadeObject, OwnIntercept, OwnIntercepts, WantedIntercept,
};

/// From before a request until the API server makes nothing of it any more: what we wait for an answer,
/// twice, and the API server's own limit of one minute.
const SETTLES_AFTER: Duration = Duration::from_secs(90);
/// Before each look for an object that a request without an answer may have made.
const LOOK_PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
];
const MIN_SWEEP_BACKOFF: Duration = Duration::from_millis(250);
const MAX_SWEEP_BACKOFF: Duration = Duration::from_secs(5);
/// Objects looked at at once.
const PARALLEL: usize = 4;
/// Of one more, the one that is over first is left to the manager, which collects it with the Session.
const MAX_LEFTOVERS: usize = 2 * MAX_INTERCEPTS;

/// Namespace and name.
type ObjectName = (String, String);
type Names = BTreeMap<ObjectName, Leftover>;

/// What the API server was asked for, from before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AskedObject {
    /// The UID of its Session.
    session: String,
    /// When no request without an answer can make it any more; `None` if all were answered.
    settles: Option<Instant>,
}

#[cfg(test)]
impl AskedObject {
    /// Of a request that may make it for as long as one can.
    pub(super) fn unanswered(session: &str) -> Self {
        Self {
            session: session.to_owned(),
            settles: Some(Instant::now() + SETTLES_AFTER),
        }
    }
}

/// An object that nobody wants any more, if it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leftover {
    session: String,
    uid: Option<String>,
    settles: Option<Instant>,
}

impl Leftover {
    fn of(entry: &OwnIntercept) -> Option<Self> {
        let asked = entry.asked.clone()?;

        Some(Self {
            session: asked.session,
            uid: entry.made.as_ref().map(|made| made.uid.clone()),
            settles: asked.settles,
        })
    }

    fn is_settled(&self, now: Instant) -> bool {
        self.settles.is_none_or(|settles| settles <= now)
    }
}

/// The objects that are to be swept. A change that is told is an addition.
#[derive(Debug, Default)]
pub(super) struct Leftovers(watch::Sender<Names>);

impl Leftovers {
    fn add(&self, name: ObjectName, new: Leftover) {
        self.0.send_modify(|names| {
            match names.get_mut(&name) {
                Some(known) => {
                    known.settles = cmp::max(known.settles, new.settles);
                    known.uid = new.uid.or(known.uid.take());
                }
                None => drop(names.insert(name, new)),
            }
            let first = names.iter().min_by_key(|(_, it)| it.settles);
            let first = first.map(|((namespace, name), _)| (namespace.clone(), name.clone()));
            if let Some(first) = first.filter(|_| names.len() > MAX_LEFTOVERS) {
                tracing::info!(
                    namespace = first.0,
                    object = first.1,
                    "Intercept object not swept"
                );
                names.remove(&first);
            }
        });
    }

    /// Notes that nothing of this name was left at `looked`.
    fn removed(&self, name: &ObjectName, looked: Instant) {
        self.0.send_if_modified(|names| {
            match names.get_mut(name) {
                Some(it) if it.is_settled(looked) => drop(names.remove(name)),
                Some(it) => it.uid = None,
                None => {}
            }
            false
        });
    }

    fn give_up(&self, name: &ObjectName) {
        self.0.send_if_modified(|names| {
            names.remove(name);
            false
        });
    }
}

impl OwnIntercept {
    /// Returns whether the API server was asked for the object, but has not answered, for this Session.
    pub(super) fn is_asked_for(&self, session: &SessionRef) -> bool {
        let is_of = |asked: &AskedObject| asked.session == session.uid;

        self.made.is_none() && self.asked.as_ref().is_some_and(is_of)
    }
}

fn name_of(entry: &OwnIntercept) -> ObjectName {
    (entry.wanted.namespace.clone(), entry.object.clone())
}

impl OwnIntercepts {
    /// Creates the object, whose name the entry has already; connections of it are taken from now on.
    pub(super) async fn create(
        &self,
        wanted: &Arc<WantedIntercept>,
        object: &str,
        session: &SessionRef,
        user: &UserInfo,
    ) -> Result<(), Fault> {
        let Some(earlier) = self.begin(wanted, object, session) else {
            return Ok(());
        };
        let (cluster, spec) = (self.login.cluster(), wanted.spec(session));
        let name = (wanted.namespace.clone(), object.to_owned());
        let created = cluster.create_intercept(&name.0, object, &spec, user).await;
        let (created, settles) = match created {
            Ok(uid) => (Ok(uid), earlier),
            Err(fault) if is_refusal(&fault) => (Err(fault), earlier),
            Err(fault) => match self.look_for(&name, session).await {
                Looked::Ours(uid) => (Ok(uid), self.settles(wanted, object)),
                Looked::Absent => return Err(fault),
                Looked::Foreign => (Err(fault), None),
            },
        };

        self.answered(wanted, name, session, created, settles)
    }

    /// Notes that the API server is about to be asked; returns when earlier requests are settled.
    /// `None` if the object is not wanted any more.
    fn begin(
        &self,
        wanted: &Arc<WantedIntercept>,
        object: &str,
        session: &SessionRef,
    ) -> Option<Option<Instant>> {
        let mut earlier = None;
        self.update(wanted, |entry| {
            if entry.object == object && entry.phase != EntryPhase::Leaving {
                let now = Instant::now();
                let asked = AskedObject {
                    session: session.uid.clone(),
                    settles: Some(now + SETTLES_AFTER),
                };
                let before = entry.asked.replace(asked);
                let settles = before.and_then(|before| before.settles);
                earlier = Some(settles.filter(|settles| *settles > now));
            }
        });

        earlier
    }

    fn settles(&self, wanted: &Arc<WantedIntercept>, object: &str) -> Option<Instant> {
        let entry = self.entry(wanted).filter(|it| it.object == object);

        entry.and_then(|entry| entry.asked?.settles)
    }

    /// Notes what became of a request.
    fn answered(
        &self,
        wanted: &Arc<WantedIntercept>,
        name: ObjectName,
        session: &SessionRef,
        created: Result<String, Fault>,
        settles: Option<Instant>,
    ) -> Result<(), Fault> {
        let mut is_wanted = false;
        self.update(wanted, |entry| {
            if entry.object != name.1 {
                return;
            }
            let asked = AskedObject {
                session: session.uid.clone(),
                settles,
            };
            is_wanted = entry.phase != EntryPhase::Leaving;
            let is_asked = created.is_ok() || settles.is_some();
            entry.asked = is_asked.then_some(asked);
            if let Ok(uid) = &created
                && is_wanted
            {
                self.targets.insert(uid, entry.targets());
                entry.made = Some(MadeObject {
                    uid: uid.clone(),
                    session: session.uid.clone(),
                });
                entry.state = None;
                entry.fault.clear();
            }
        });
        let uid = created?;
        tracing::info!(
            namespace = name.0,
            object = name.1,
            is_wanted,
            "Intercept object created"
        );
        if !is_wanted {
            // It was ended while it was being made.
            let leftover = Leftover {
                session: session.uid.clone(),
                uid: Some(uid),
                settles,
            };
            self.leftovers.add(name, leftover);
        }

        Ok(())
    }

    /// Looks for what a request without an answer has made.
    async fn look_for(&self, (namespace, object): &ObjectName, session: &SessionRef) -> Looked {
        for pause in LOOK_PAUSES {
            sleep(pause).await;
            let cluster = self.login.cluster();
            match cluster.find_intercept(namespace, object).await {
                Ok(Some(found)) if found.session == session.uid => {
                    tracing::info!(%namespace, %object, "Intercept object found, whose creation had no answer");
                    return Looked::Ours(found.uid);
                }
                Ok(Some(_)) => return Looked::Foreign,
                Ok(None) => {}
                Err(_) => return Looked::Absent,
            }
        }

        Looked::Absent
    }

    /// Has the entry's object swept, which is not the entry's any more.
    pub(super) fn leave_over(&self, entry: &OwnIntercept) {
        if let Some(leftover) = Leftover::of(entry) {
            self.leftovers.add(name_of(entry), leftover);
        }
    }

    /// The same, after the object was deleted: only what a request without an answer may still make.
    pub(super) fn leave_unsettled(&self, entry: &OwnIntercept) {
        let leftover = Leftover::of(entry).filter(|it| it.settles.is_some());
        if let Some(leftover) = leftover {
            let uid = None;
            self.leftovers
                .add(name_of(entry), Leftover { uid, ..leftover });
        }
    }

    /// Deletes the object of an entry, as far as it is there.
    pub(super) async fn delete(&self, entry: &OwnIntercept) -> Result<(), Fault> {
        match Leftover::of(entry) {
            Some(leftover) => self.remove(&name_of(entry), &leftover).await,
            None => Ok(()),
        }
    }

    async fn remove(
        &self,
        (namespace, object): &ObjectName,
        leftover: &Leftover,
    ) -> Result<(), Fault> {
        let cluster = self.login.cluster();
        let uid = match &leftover.uid {
            Some(uid) if leftover.settles.is_none() => uid.clone(),
            _ => match cluster.find_intercept(namespace, object).await? {
                Some(found) if found.session == leftover.session => found.uid,
                // Another session's is none of our business.
                _ => return Ok(()),
            },
        };
        let deletion = cluster.delete_intercept(namespace, object, &uid).await?;
        if deletion == Deletion::Done {
            tracing::info!(%namespace, %object, "Intercept object deleted");
        }

        Ok(())
    }

    /// Deletes what is left over, as soon as it is there.
    pub(super) async fn sweep(&self) -> Infallible {
        let mut backoff = Backoff::new(MIN_SWEEP_BACKOFF, MAX_SWEEP_BACKOFF);
        let mut leftovers = self.leftovers.0.subscribe();
        loop {
            let due = leftovers.borrow_and_update().clone();
            let is_done = due.is_empty();
            let sweeps = stream::iter(due).for_each_concurrent(PARALLEL, async |(name, it)| {
                self.sweep_one(&name, &it).await;
            });
            sweeps.await;
            if is_done {
                if leftovers.changed().await.is_err() {
                    return pending().await;
                }
                backoff.reset();
                continue;
            }
            let pause = backoff.pause(fastrand::f64());
            if timeout(pause, leftovers.changed()).await.is_ok() {
                backoff.reset();
            }
        }
    }

    async fn sweep_one(&self, name: &ObjectName, leftover: &Leftover) {
        let looked = Instant::now();
        match self.remove(name, leftover).await {
            Ok(()) => self.leftovers.removed(name, looked),
            Err(fault) => {
                tracing::info!(namespace = name.0, object = name.1, reason = %fault, "Intercept object not deleted");
                if is_refusal(&fault) {
                    // The manager collects it with the Session.
                    self.leftovers.give_up(name);
                }
            }
        }
    }

    /// Deletes all objects, those of the entries and those that are left over.
    pub(super) async fn delete_all(&self) {
        let mut all: Vec<(ObjectName, Leftover)> = {
            let entries = self.entries.borrow();
            let entries = entries.values();
            entries
                .filter(|entry| entry.phase != EntryPhase::Ended)
                .filter_map(|entry| Some((name_of(entry), Leftover::of(entry)?)))
                .collect()
        };
        all.extend(self.leftovers.0.borrow().clone());
        let sweeps = stream::iter(all).for_each_concurrent(4 * PARALLEL, async |(name, it)| {
            self.sweep_one(&name, &it).await;
        });

        sweeps.await;
    }
}

enum Looked {
    Ours(String),
    Absent,
    /// The name is another session's.
    Foreign,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftover(uid: Option<&str>, settles: Option<Instant>) -> Leftover {
        Leftover {
            session: "session-1".to_owned(),
            uid: uid.map(str::to_owned),
            settles,
        }
    }

    fn name(name: &str) -> ObjectName {
        ("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn a_name_is_looked_at_until_no_request_can_make_it_any_more() {
        let leftovers = Leftovers::default();
        let now = Instant::now();
        let settles = now + SETTLES_AFTER;
        leftovers.add(name("web"), leftover(Some("1"), Some(settles)));
        leftovers.add(name("api"), leftover(Some("2"), None));

        leftovers.removed(&name("web"), now);
        leftovers.removed(&name("api"), now);

        let left = leftovers.0.borrow().clone();
        assert_eq!(
            left,
            BTreeMap::from([(name("web"), leftover(None, Some(settles)))])
        );
        leftovers.removed(&name("web"), settles);
        assert!(leftovers.0.borrow().is_empty());
    }

    #[test]
    fn what_is_added_twice_waits_for_the_later_request() {
        let leftovers = Leftovers::default();
        let now = Instant::now();
        leftovers.add(name("web"), leftover(None, Some(now)));
        leftovers.add(name("web"), leftover(Some("1"), None));

        let left = leftovers.0.borrow().clone();

        assert_eq!(left[&name("web")], leftover(Some("1"), Some(now)));
    }

    #[test]
    fn of_too_many_the_one_that_is_over_first_goes() {
        let leftovers = Leftovers::default();
        let now = Instant::now();
        for at in 0..=MAX_LEFTOVERS {
            let settles = now + Duration::from_secs(u64::try_from(at).unwrap());
            leftovers.add(name(&format!("web-{at}")), leftover(None, Some(settles)));
        }

        let left = leftovers.0.borrow().clone();

        assert_eq!(left.len(), MAX_LEFTOVERS);
        assert!(!left.contains_key(&name("web-0")));
    }
}

//! Which replica has which session, in a record that only managers write: each replica its own part of
//! one ConfigMap, of the sessions that Intercepts name.
//!
//! A session belongs to one replica for as long as its connection lasts, and to none afterwards. From
//! the record all replicas know the same of it, also of a replica that is gone for good, or has
//! restarted. A part that is not renewed any more is one of sessions that are gone since the last
//! renewal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher::watcher},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tp_process::sync;
use tp_proto::crd::SESSIONS_CONFIG_MAP;

use super::Intercepts;
use crate::{
    index::{self, SyncedPart},
    model::Update,
};

/// From one look at what changed to the next: at most one write in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// While there are sessions, their replica says so this often.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// A part that was not renewed for so long is of a replica that is gone. A user who connects again waits
/// so long for the end of the session before.
const GONE_AFTER: Duration = Duration::from_secs(14);
/// Another replica speaks for it after this time.
const MUTE_AFTER: Duration = Duration::from_secs(60);
/// A session that is in no part may be new, and its replica about to write it.
const ABSENT_AFTER: Duration = Duration::from_secs(14);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Sessions in one part, 40 bytes each: a ConfigMap has 1 MiB.
const MAX_SESSIONS: usize = 2048;
const MAX_PARTS: usize = 64;

/// Where a session is, as this replica knows without the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    Connected,
    /// Its connection to this replica has ended, or is silent since then.
    Left(Timestamp),
    Never,
}

/// What one replica writes; times are in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ReplicaPart {
    /// When the first process of this pod began to keep it.
    since: i64,
    renewed: i64,
    /// UIDs of Sessions.
    connected: BTreeSet<String>,
    /// With the time at which each was heard last.
    left: BTreeMap<String, i64>,
}

/// The part of another replica.
#[derive(Debug)]
struct OtherPart {
    part: ReplicaPart,
    /// When it was seen to change: clocks may differ.
    changed: Instant,
    /// It was there at the start of this process: how old it was then, only clocks tell.
    was_there: bool,
}

/// The record, as this replica knows it.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    /// Name of this replica's pod.
    pod: String,
    /// How long the Intercepts of a session that is away hold their ports.
    pub(super) release_after: Duration,
    parts: Mutex<Parts>,
}

#[derive(Debug)]
struct Parts {
    own: ReplicaPart,
    /// What the pod's part had at the start of this process is in `own`.
    is_inherited: bool,
    others: BTreeMap<String, OtherPart>,
    /// Somebody has deleted the record, and this replica has not begun to write it anew.
    is_lost: bool,
    is_overfull: bool,
}

/// A change of the record.
type Data = BTreeMap<String, String>;

impl Whereabouts {
    pub(crate) fn new(pod: String, release_after: Duration, now: Timestamp) -> Self {
        let own = ReplicaPart {
            since: now.as_second(),
            ..ReplicaPart::default()
        };

        Self {
            pod,
            release_after,
            parts: Mutex::new(Parts {
                own,
                is_inherited: false,
                others: BTreeMap::new(),
                is_lost: false,
                is_overfull: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        sync::lock(&self.parts)
    }

    /// Takes the record; returns whether it says something else of a session than before.
    fn take(&self, data: &Data, now: Instant) -> bool {
        let mut parts = self.lock();
        let mut is_changed = false;
        let was_there = !parts.is_inherited;
        for (pod, text) in data {
            let Ok(part) = serde_json::from_str::<ReplicaPart>(text) else {
                tracing::debug!(pod, "Part of the record of sessions cannot be read");
                continue;
            };
            if *pod == self.pod {
                is_changed |= parts.inherit(part);
                continue;
            }
            let before = parts.others.get(pod);
            if before.is_some_and(|before| before.part == part)
                || (before.is_none() && parts.others.len() >= MAX_PARTS)
            {
                continue;
            }
            is_changed |= before.is_none_or(|before| !before.part.says_the_same(&part));
            let other = OtherPart {
                part,
                changed: now,
                was_there,
            };
            parts.others.insert(pod.clone(), other);
        }
        // The pod has none.
        parts.is_inherited = true;

        is_changed
    }

    /// How long a session that Intercepts name has had no connection to any replica; `None` if it has
    /// one, or is too new to tell. `made` is when the last of these Intercepts was.
    pub(super) fn disconnected(
        &self,
        session: &str,
        here: Here,
        made: Timestamp,
        (now, at): (Timestamp, Instant),
    ) -> Option<Duration> {
        if here == Here::Connected {
            return None;
        }
        let parts = self.lock();
        let mut others = parts.others.values();
        if others.any(|it| it.was_renewed(at, GONE_AFTER) && it.part.connected.contains(session)) {
            return None;
        }
        if let Some(away) = parts.away(session, here, (now, at)) {
            return Some(away);
        }
        // Before the record began a session may have been connected without being in it.
        let since = parts.began().max(made.as_second());
        let away = passed(since, now.as_second());

        (away >= ABSENT_AFTER).then_some(away)
    }

    /// When the session was heard last, if the record has it: for people, by the clock of whoever had it.
    pub(super) fn heard(&self, session: &str, here: Here) -> Option<Timestamp> {
        let heard = self.lock().heard(session, here)?;

        Timestamp::from_second(heard).ok()
    }

    /// Returns whether it is for this replica to say what became of a session: it had the session last,
    /// or no replica that lives has a say, and it is the first of those that live.
    pub(super) fn speaks_for(&self, session: &str, here: Here, at: Instant) -> bool {
        let parts = self.lock();
        if here != Here::Never || parts.own.left.contains_key(session) {
            return true;
        }
        let others = parts.others.iter();
        let mut alive = others.filter(|(_, other)| other.was_renewed(at, MUTE_AFTER));

        alive.all(|(pod, other)| {
            let has_it = other.part.connected.contains(session);
            !has_it && !other.part.left.contains_key(session) && *pod > self.pod
        })
    }

    /// Returns whether this replica, or an earlier process of its pod, had the session.
    pub(super) fn had(&self, session: &str) -> bool {
        self.lock().own.left.contains_key(session)
    }

    /// Notes where the sessions are that Intercepts name.
    fn note<'a>(&self, named: impl Iterator<Item = (&'a str, Here)>) {
        let mut parts = self.lock();
        let parts = &mut *parts;
        let own = &mut parts.own;
        let mut connected = BTreeSet::new();
        let mut left = BTreeMap::new();
        for (session, here) in named {
            match (here, own.left.get(session)) {
                (Here::Connected, _) => drop(connected.insert(session.to_owned())),
                (Here::Left(_) | Here::Never, Some(since)) => {
                    left.insert(session.to_owned(), *since);
                }
                (Here::Left(since), None) => {
                    left.insert(session.to_owned(), since.as_second());
                }
                (Here::Never, None) => {}
            }
        }
        // Another Session may be named by its UID.
        left.retain(|session, _| !connected.contains(session));
        let is_overfull = connected.len().max(left.len()) > MAX_SESSIONS;
        if is_overfull && !parts.is_overfull {
            tracing::warn!(MAX_SESSIONS, "More sessions intercept than are recorded");
        }
        parts.is_overfull = is_overfull;
        own.connected = connected.into_iter().take(MAX_SESSIONS).collect();
        own.left = left.into_iter().take(MAX_SESSIONS).collect();
    }

    /// What is to be written now, if anything.
    fn due(&self, written: Option<&(ReplicaPart, Instant)>, now: Timestamp) -> Option<ReplicaPart> {
        let parts = self.lock();
        let is_due = match written {
            Some((before, at)) => {
                let is_renewal = !parts.own.connected.is_empty() && at.elapsed() >= RENEW_INTERVAL;
                is_renewal || !before.says_the_same(&parts.own)
            }
            // What the process before it wrote is not true any more.
            None => true,
        };

        is_due.then(|| ReplicaPart {
            renewed: now.as_second(),
            ..parts.own.clone()
        })
    }
}

impl Parts {
    /// Takes what the pod's part had at the start; returns whether that says anything.
    fn inherit(&mut self, before: ReplicaPart) -> bool {
        if std::mem::replace(&mut self.is_inherited, true) {
            return false;
        }
        self.own.since = self.own.since.min(before.since);
        let had = before.connected.into_iter();
        self.own.left = before.left;
        self.own
            .left
            .extend(had.map(|session| (session, before.renewed)));

        true
    }
}

impl Parts {
    /// When the session was heard last by this replica, or by an earlier process of its pod.
    fn heard_here(&self, session: &str, here: Here) -> Option<i64> {
        match here {
            Here::Left(since) => Some(since.as_second()),
            Here::Connected | Here::Never => self.own.left.get(session).copied(),
        }
    }

    /// How long ago the session was heard last by any replica that does not have it any more.
    fn away(&self, session: &str, here: Here, now: (Timestamp, Instant)) -> Option<Duration> {
        let own = self.heard_here(session, here);
        let own = own.map(|heard| passed(heard, now.0.as_second()));
        let others = self.others.values().filter_map(|it| it.away(session, now));

        own.into_iter().chain(others).min()
    }

    /// When the session was heard last by any replica that does not have it any more.
    fn heard(&self, session: &str, here: Here) -> Option<i64> {
        let own = self.heard_here(session, here);
        let others = self.others.values().map(|it| it.part.heard(session));

        others.fold(own, Option::max)
    }

    /// Since when each session is in the record that Intercepts name.
    fn began(&self) -> i64 {
        let others = self.others.values().map(|it| it.part.since);

        others.fold(self.own.since, i64::min)
    }
}

impl ReplicaPart {
    fn says_the_same(&self, other: &Self) -> bool {
        (&self.connected, &self.left) == (&other.connected, &other.left)
    }

    /// When it had the session last, if it has that no more.
    fn heard(&self, session: &str) -> Option<i64> {
        let had = self.connected.contains(session);

        (self.left.get(session).copied()).max(had.then_some(self.renewed))
    }
}

impl OtherPart {
    fn was_renewed(&self, now: Instant, within: Duration) -> bool {
        now.saturating_duration_since(self.changed) < within
    }

    /// How long ago its replica heard this session last: until it wrote that by its own clock, and
    /// since then by ours.
    fn away(&self, session: &str, (now, at): (Timestamp, Instant)) -> Option<Duration> {
        let heard = self.part.heard(session)?;
        let seen = at.saturating_duration_since(self.changed);
        let away = passed(heard, self.part.renewed) + seen;

        Some(match self.was_there {
            true => away.max(passed(heard, now.as_second())),
            false => away,
        })
    }
}

/// Between two times in seconds.
fn passed(since: i64, now: i64) -> Duration {
    Duration::from_secs(u64::try_from(now.saturating_sub(since)).unwrap_or_default())
}

impl Intercepts {
    /// Watches the record until it is aborted.
    pub(crate) async fn follow_record(
        &self,
        client: Client,
        namespace: String,
        synced: SyncedPart,
    ) {
        let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let by_name = index::watch_config().fields(&format!("metadata.name={SESSIONS_CONFIG_MAP}"));
        let events = watcher(maps, by_name).default_backoff();
        let convert = |map: &ConfigMap| (map.name_any(), map.data.clone());
        let take = |updates| self.take_record(updates, Instant::now());
        index::follow_with(events, convert, take, synced).await;
    }

    pub(super) fn take_record(&self, updates: Vec<Update<String, Data>>, now: Instant) {
        let mut is_changed = false;
        for update in updates {
            let all = match update {
                Update::Applied(_, data) => vec![data],
                Update::Replaced(all) if all.is_empty() => {
                    self.whereabouts.lock().is_lost = true;
                    vec![Data::new()]
                }
                Update::Replaced(all) => all.into_values().collect(),
                Update::Removed(_) => {
                    self.whereabouts.lock().is_lost = true;
                    Vec::new()
                }
            };
            for data in all {
                is_changed |= self.whereabouts.take(&data, now);
            }
        }
        if is_changed {
            self.changed();
        }
    }

    /// Notes where the sessions of Intercepts are, once it is known which there are.
    pub(super) fn note_sessions(&self) -> bool {
        let is_known = self.is_listed() && self.whereabouts.lock().is_inherited;
        if is_known {
            let sessions = self.named_sessions();
            let named = sessions
                .keys()
                .map(|session| (session.uid.as_str(), self.here(session)));
            self.whereabouts.note(named);
        }

        is_known
    }
}

/// Writes this replica's part until it is aborted.
pub(crate) async fn keep(client: Client, namespace: String, intercepts: Arc<Intercepts>) {
    let whereabouts = &intercepts.whereabouts;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut written = None;
    let mut failures = Failures::default();
    loop {
        sleep(INTERVAL).await;
        if !intercepts.note_sessions() {
            continue;
        }
        if std::mem::take(&mut whereabouts.lock().is_lost) {
            written = None;
        }
        let Some(part) = whereabouts.due(written.as_ref(), Timestamp::now()) else {
            continue;
        };
        let error = match timeout(TIMEOUT, write(&maps, &whereabouts.pod, &part)).await {
            Ok(Ok(())) => {
                written = Some((part, Instant::now()));
                failures = Failures::default();
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it took too long".to_owned(),
        };
        match failures.is_to_be_told(Instant::now()) {
            true => tracing::warn!(
                error,
                "Cannot write the record of sessions, `tp install` restores it: ports may be taken \
                 for free, or for held"
            ),
            false => tracing::debug!(error, "Cannot write the record of sessions"),
        }
    }
}

/// Failures to write the record, one after another.
#[derive(Debug, Default)]
struct Failures {
    first: Option<Instant>,
    is_told: bool,
}

impl Failures {
    /// Counts one more; returns whether the other replicas take this one for gone by now, once.
    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let first = *self.first.get_or_insert(now);

        now.saturating_duration_since(first) > GONE_AFTER
            && !std::mem::replace(&mut self.is_told, true)
    }
}

async fn write(maps: &Api<ConfigMap>, pod: &str, part: &ReplicaPart) -> anyhow::Result<()> {
    let text = serde_json::to_string(part)?;
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SESSIONS_CONFIG_MAP},
        "data": {pod: text},
    });
    // Each replica owns its own entry.
    let params = PatchParams::apply(pod).force();
    maps.patch(SESSIONS_CONFIG_MAP, &params, &Patch::Apply(map))
        .await?;

    Ok(())
}

#[cfg(test)]
mod tests;

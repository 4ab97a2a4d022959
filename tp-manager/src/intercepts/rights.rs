//! Whether the users of the Intercepts that this replica serves may still make them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tp_process::sync::{lock, read};
use tp_transport::SessionRef;

use super::{InterceptRecord, Intercepts};
use crate::access::{Access, Scope, User};

/// With the age of an answer that counts, less than five seconds until a right that was revoked ends.
const INTERVAL: Duration = Duration::from_secs(2);
/// Reviews waited for at once.
const PARALLEL: usize = 16;
/// Age of a refusal that still counts as one without a break.
const CONFIRMED_LIFETIME: Duration = Duration::from_secs(10);

/// An Intercept does not hold its ports for longer than this while its user may not make it.
const DELETED_AFTER: Duration = Duration::from_secs(60);

/// A right: that of the user of a Session in a namespace.
type RightKey = (SessionRef, String);

/// A right that a user lacks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denial {
    /// Without a break.
    since: Instant,
    /// When the API server said so last.
    confirmed: Instant,
}

pub(super) type Denied = BTreeMap<RightKey, Denial>;

/// Runs until it is aborted.
pub(crate) async fn keep(access: Arc<Access>, intercepts: Arc<Intercepts>) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        intercepts.review(&access).await;
    }
}

impl Denial {
    /// What could not be asked for a while may have changed.
    fn is_confirmed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.confirmed) < CONFIRMED_LIFETIME
    }
}

impl Intercepts {
    /// Asks for each right that an Intercept rests on. What cannot be asked stays as it was.
    pub(super) async fn review(&self, access: &Arc<Access>) {
        let before = lock(&self.denied).clone();
        let reviewed = stream::iter(self.rights_in_use()).map(|(key, user)| {
            let denied = before.get(&key).copied();
            async move {
                let scope = Scope::Intercepts(key.1.clone());
                let denial = match access.allows(&user, &scope).await {
                    Ok(true) => None,
                    Ok(false) => {
                        let confirmed = Instant::now();
                        let lasting = denied.filter(|it| it.is_confirmed(confirmed));
                        let since = lasting.map_or(confirmed, |it| it.since);
                        Some(Denial { since, confirmed })
                    }
                    Err(error) => {
                        tracing::debug!(%error, "Cannot ask again for the right to an Intercept");
                        denied
                    }
                };
                Some((key, denial?))
            }
        });
        let reviewed = reviewed.buffer_unordered(PARALLEL);
        let now_denied: Denied = reviewed.filter_map(async |it| it).collect().await;
        let is_changed = !before.keys().eq(now_denied.keys());
        *lock(&self.denied) = now_denied;
        if is_changed {
            self.changed();
        }
    }

    /// By the Sessions' users as they were renewed last; also of what was not announced, which holds
    /// its ports all the same.
    fn rights_in_use(&self) -> BTreeMap<RightKey, Arc<User>> {
        let presences = self.presences(Instant::now()).into_iter();
        let present: BTreeSet<SessionRef> = presences.map(|it| it.session).collect();
        let now = Timestamp::now();
        let mut rights = BTreeMap::new();
        for record in read(&self.by_uid).values() {
            let session = &record.session;
            if !present.contains(session) {
                continue;
            }
            let Ok(valid) = self.sessions.revalidate(session, None, now) else {
                continue;
            };
            if valid.user.is_same_person(&record.user) {
                rights.insert(right(record), valid.user);
            }
        }

        rights
    }

    /// Those whose users have been without the right to make them for too long.
    pub(crate) fn unlawful(&self, now: Instant) -> Vec<Arc<InterceptRecord>> {
        let denied = lock(&self.denied).clone();
        let by_uid = read(&self.by_uid);
        let unlawful = by_uid.values().filter(|record| {
            let denial = denied.get(&right(record));
            denial.is_some_and(|it| {
                let lasted = now.saturating_duration_since(it.since);
                lasted >= DELETED_AFTER && it.is_confirmed(now)
            })
        });

        unlawful.cloned().collect()
    }

    /// Makes the denials last longer, and their last confirmation older.
    #[cfg(test)]
    pub(crate) fn age_denials(&self, since: Duration, confirmed: Duration) {
        for denial in lock(&self.denied).values_mut() {
            denial.since -= since;
            denial.confirmed -= confirmed;
        }
    }

    /// Why the Intercept is not served although it may hold its ports: a sentence.
    pub(super) fn denial(&self, record: &InterceptRecord) -> Option<String> {
        let scope = Scope::Intercepts(record.object.namespace.clone());

        lock(&self.denied)
            .contains_key(&right(record))
            .then(|| format!("{} may no longer {}", record.user.name(), scope.right()))
    }
}

fn right(record: &InterceptRecord) -> RightKey {
    (record.session.clone(), record.object.namespace.clone())
}

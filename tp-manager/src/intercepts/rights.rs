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

/// An Intercept does not hold its ports for longer than this while its user may not make it.
const DELETED_AFTER: Duration = Duration::from_secs(60);

/// A right: that of the user of a Session in a namespace.
type RightKey = (SessionRef, String);

/// The rights that users lack, and since when without a break.
pub(super) type Denied = BTreeMap<RightKey, Instant>;

/// Runs until it is aborted.
pub(crate) async fn keep(access: Arc<Access>, intercepts: Arc<Intercepts>) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        intercepts.review(&access).await;
    }
}

impl Intercepts {
    /// Asks for each right that an Intercept rests on. What cannot be asked stays as it was.
    pub(super) async fn review(&self, access: &Arc<Access>) {
        let before = lock(&self.denied).clone();
        let reviewed = stream::iter(self.rights_in_use()).map(|(key, user)| {
            let was_denied = before.contains_key(&key);
            async move {
                let scope = Scope::Intercepts(key.1.clone());
                let is_denied = match access.allows(&user, &scope).await {
                    Ok(allowed) => !allowed,
                    Err(error) => {
                        tracing::debug!(%error, "Cannot ask again for the right to an Intercept");
                        was_denied
                    }
                };
                is_denied.then_some(key)
            }
        });
        let reviewed = reviewed.buffer_unordered(PARALLEL);
        let denied: Vec<RightKey> = reviewed.filter_map(async |it| it).collect().await;
        let now = Instant::now();
        let since = |key: RightKey| {
            let since = before.get(&key).copied().unwrap_or(now);
            (key, since)
        };
        let now_denied: Denied = denied.into_iter().map(since).collect();
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
            let since = denied.get(&right(record));
            since.is_some_and(|since| now.saturating_duration_since(*since) >= DELETED_AFTER)
        });

        unlawful.cloned().collect()
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

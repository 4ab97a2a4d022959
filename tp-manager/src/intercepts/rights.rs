//! Whether the users of the Intercepts that this replica serves may still make them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tp_process::sync::lock;

use super::{InterceptRecord, Intercepts};
use crate::access::{Access, Scope, User};

/// With the age of an answer that counts, less than five seconds until a right that was revoked ends.
const INTERVAL: Duration = Duration::from_secs(2);
/// Reviews waited for at once.
const PARALLEL: usize = 16;

/// UIDs of Sessions, with the namespaces in which their users may not intercept.
pub(super) type Denied = BTreeSet<(String, String)>;

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
    /// Asks for each right that a lease rests on. What cannot be asked stays as it was.
    pub(super) async fn review(&self, access: &Arc<Access>) {
        let reviewed = stream::iter(self.rights_in_use()).map(|(key, user)| async move {
            let scope = Scope::Intercepts(key.1.clone());
            let is_denied = match access.allows(&user, &scope).await {
                Ok(allowed) => !allowed,
                Err(error) => {
                    tracing::debug!(%error, "Cannot ask again for the right to an Intercept");
                    lock(&self.denied).contains(&key)
                }
            };
            is_denied.then_some(key)
        });
        let reviewed = reviewed.buffer_unordered(PARALLEL);
        let now_denied: Denied = reviewed.filter_map(async |it| it).collect().await;
        let before = std::mem::replace(&mut *lock(&self.denied), now_denied.clone());
        if before != now_denied {
            self.changed();
        }
    }

    /// By the Sessions' users as they were renewed last.
    fn rights_in_use(&self) -> Vec<((String, String), Arc<User>)> {
        let mut keys = BTreeSet::new();
        let mut rights = Vec::new();
        for presence in self.presences(Instant::now()) {
            let session = &presence.session;
            let Ok(valid) = self.sessions.revalidate(session, None, Timestamp::now()) else {
                continue;
            };
            for uid in presence.announced.keys() {
                let Some(record) = self.record(uid).filter(|it| it.session == *session) else {
                    continue;
                };
                let key = (session.uid.clone(), record.object.namespace.clone());
                if keys.insert(key.clone()) {
                    rights.push((key, Arc::clone(&valid.user)));
                }
            }
        }

        rights
    }

    /// Why the Intercept is not served although it may hold its ports: a sentence.
    pub(super) fn denial(&self, record: &InterceptRecord) -> Option<String> {
        let namespace = &record.object.namespace;
        let key = (record.session.uid.clone(), namespace.clone());
        let scope = Scope::Intercepts(namespace.clone());

        lock(&self.denied)
            .contains(&key)
            .then(|| format!("{} may no longer {}", record.user.name(), scope.right()))
    }
}

//! Intercepts whose objects are of an earlier Session are made anew; what somebody else has ended in the
//! cluster is not.

use std::{convert::Infallible, future::pending, mem, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::{ENDED_BY_SOMEBODY, UserInfo},
    fault::Fault,
};
use tp_transport::SessionRef;

use super::{Entries, EntryPhase, OwnIntercept, OwnIntercepts, WantedIntercept, files};

const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(500);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(30);
/// Objects made at once.
const PARALLEL: usize = 4;
/// How often an object is looked for that the manager does not serve.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// From one look to the next, where the manager says that an object was deleted.
const LOOK_BACKOFF: Duration = Duration::from_millis(500);

impl OwnIntercepts {
    /// Makes anew whatever is not of `session`.
    pub(super) async fn renew_all(&self, session: &SessionRef) -> Infallible {
        let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
        let mut entries = self.entries.subscribe();
        loop {
            let stale = stale(&entries.borrow_and_update(), session);
            if stale.is_empty() {
                if entries.changed().await.is_err() {
                    return pending().await;
                }
                continue;
            }
            if self.renew(stale, session).await {
                backoff.reset();
            } else {
                sleep(backoff.pause(fastrand::f64())).await;
            }
        }
    }

    /// Returns whether all were made.
    async fn renew(&self, stale: Vec<Arc<WantedIntercept>>, session: &SessionRef) -> bool {
        let user = match self.login.user().await {
            Ok(user) => user,
            Err(fault) => {
                stale.iter().for_each(|it| self.note(it, &fault));
                return false;
            }
        };
        let user = &user;
        let renewals = stream::iter(stale)
            .map(|wanted| async move { self.renew_one(&wanted, session, user).await })
            .buffer_unordered(PARALLEL);

        // All are tried, whatever becomes of the first.
        renewals
            .fold(true, async |all, is_made| all && is_made)
            .await
    }

    async fn renew_one(
        &self,
        wanted: &Arc<WantedIntercept>,
        session: &SessionRef,
        user: &UserInfo,
    ) -> bool {
        let mut object = None;
        self.update(wanted, |entry| {
            if entry.phase == EntryPhase::Standing {
                // Under the same name, what an earlier request makes is this one's object.
                if !entry.is_asked_for(session) {
                    self.leave_over(entry);
                    entry.object = wanted.object_name();
                    entry.asked = None;
                    if let Some(made) = entry.made.take() {
                        self.targets.remove(&made.uid);
                    }
                }
                entry.state = None;
                object = Some(entry.object.clone());
            }
        });
        // The user has ended it.
        let Some(object) = object else {
            return true;
        };
        match self.create(wanted, &object, session, user).await {
            Ok(()) => true,
            Err(fault) => {
                tracing::info!(name = wanted.name, reason = %fault, "Intercept not made anew");
                self.note(wanted, &fault);
                false
            }
        }
    }

    fn note(&self, wanted: &Arc<WantedIntercept>, fault: &Fault) {
        self.update(wanted, |entry| entry.fault.clone_from(&fault.message));
    }

    /// Notices the intercepts that somebody has ended in the cluster.
    pub(super) async fn look_for_ended(&self) -> Infallible {
        let mut entries = self.entries.subscribe();
        loop {
            sleep(LOOK_BACKOFF).await;
            drop(timeout(LOOK_INTERVAL, entries.wait_for(is_any_deleted)).await);
            let suspects = suspects(&self.entries.borrow());
            for entry in suspects {
                let Some(made) = &entry.made else { continue };
                let cluster = self.login.cluster();
                let namespace = &entry.wanted.namespace;
                if !cluster
                    .lacks_intercept(namespace, &entry.object, &made.uid)
                    .await
                {
                    continue;
                }
                let mut files = Vec::new();
                self.update(&entry.wanted, |now| {
                    if now.phase == EntryPhase::Standing && now.made.as_ref() == Some(made) {
                        now.phase = EntryPhase::Ended;
                        files = mem::take(&mut now.files);
                        // The manager forgets it.
                        let why = entry.state.as_ref().map(|state| state.ended.clone());
                        let why = why.filter(|why| !why.is_empty());
                        now.fault = why.unwrap_or_else(|| ENDED_BY_SOMEBODY.to_owned());
                        self.targets.remove(&made.uid);
                        self.leave_unsettled(now);
                        tracing::info!(%namespace, object = now.object, "Intercept ended in the cluster");
                    }
                });
                files::remove_all(files).await;
            }
        }
    }
}

fn stale(entries: &Entries, session: &SessionRef) -> Vec<Arc<WantedIntercept>> {
    let is_stale = |entry: &&OwnIntercept| {
        let made = entry.made.as_ref();
        entry.phase == EntryPhase::Standing && made.is_none_or(|it| it.session != session.uid)
    };

    entries
        .values()
        .filter(is_stale)
        .map(|entry| Arc::clone(&entry.wanted))
        .collect()
}

/// The manager says of one that its object was deleted.
fn is_any_deleted(entries: &Entries) -> bool {
    let is_deleted = |entry: &OwnIntercept| {
        let state = entry.state.as_ref();
        entry.phase == EntryPhase::Standing && state.is_some_and(|state| !state.ended.is_empty())
    };

    entries.values().any(is_deleted)
}

/// Those that the manager does not serve, though they have an object.
fn suspects(entries: &Entries) -> Vec<OwnIntercept> {
    let is_suspect = |entry: &&OwnIntercept| {
        let state = entry.state.as_ref();
        entry.phase == EntryPhase::Standing
            && entry.made.is_some()
            && state.is_none_or(|state| !state.refusal.is_empty())
    };

    entries.values().filter(is_suspect).cloned().collect()
}

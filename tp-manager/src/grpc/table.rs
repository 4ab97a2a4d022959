//! The stream of the table that one user may see.

use std::{collections::BTreeSet, sync::Arc, time::Duration, vec};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;
use tp_proto::tunnel::TableEvent;

use super::wire;
use crate::{
    access::{Access, AccessError, PolledRights, Scope, User},
    model::{
        SharedModel,
        table::{Change, PART, TableCursor},
    },
};

/// Changes come in bursts: a rollout, a new namespace with everything in it.
const GATHER_DELAY: Duration = Duration::from_millis(50);
/// The shortest time between reviews of a user's rights.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);
/// The same for each namespace, to bound the load of the API server.
const NAMESPACE_REVIEW_INTERVAL: Duration = Duration::from_millis(25);
const PARALLEL_REVIEWS: usize = 16;
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

struct Watch {
    model: SharedModel,
    changes: watch::Receiver<u64>,
    access: Arc<Access>,
    user: watch::Receiver<Arc<User>>,
    /// The client's position in the table.
    cursor: TableCursor,
    /// All namespaces, and the revision at which they were read.
    all: BTreeSet<String>,
    all_at: Option<u64>,
    /// Namespaces in which the user has the right, among those reviewed.
    namespaces: BTreeSet<String>,
    reviewed: BTreeSet<String>,
    review_at: Instant,
    /// The time at which failed reviews are repeated.
    retry_at: Option<Instant>,
    /// Number of reviews of the last time.
    review_count: usize,
    polled: Option<PolledRights>,
    /// Changes that are to be sent next.
    ready: vec::IntoIter<Change>,
    _permit: OwnedSemaphorePermit,
}

/// One snapshot, then every change of it.
pub(super) fn events(
    model: SharedModel,
    access: Arc<Access>,
    user: watch::Receiver<Arc<User>>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<TableEvent, Status>> + Send {
    let watch = Watch {
        changes: model.changes(),
        model,
        access,
        user,
        cursor: TableCursor::new(PART),
        all: BTreeSet::new(),
        all_at: None,
        namespaces: BTreeSet::new(),
        reviewed: BTreeSet::new(),
        review_at: Instant::now(),
        retry_at: None,
        review_count: 0,
        polled: None,
        ready: Vec::new().into_iter(),
        _permit: permit,
    };

    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await;
        Some((Ok(event), watch))
    })
}

impl Watch {
    async fn next(&mut self) -> TableEvent {
        loop {
            if let Some(change) = self.ready.next() {
                return wire::change(change);
            }
            // A waiting session keeps no buffer for hundreds of changes.
            self.ready = Vec::new().into_iter();
            if !self.cursor.has_more() {
                self.wait().await;
            }
            // Boxed, for the same reason.
            Box::pin(self.refresh()).await;
        }
    }

    async fn wait(&mut self) {
        let due = self.review_at.min(self.retry_at.unwrap_or(self.review_at));
        if self.cursor.is_at_start() {
            // The first review is due; after a failure, soon.
            sleep_until(due).await;
            return;
        }
        tokio::select! {
            Ok(()) = self.changes.changed() => sleep(GATHER_DELAY).await,
            // The user has other groups, and so other rights.
            Ok(()) = self.user.changed() => self.review_at = Instant::now(),
            () = sleep_until(due) => {}
        }
        self.changes.mark_unchanged();
    }

    async fn refresh(&mut self) {
        self.read_namespaces();
        self.review().await;
        // A snapshot without the namespaces whose review failed would take their names from the
        // client.
        if self.cursor.is_at_start() && self.retry_at.is_some() {
            return;
        }
        let changes = self.cursor.follow(&self.model.read(), &self.namespaces);
        self.ready = changes.into_iter();
    }

    fn read_namespaces(&mut self) {
        let model = self.model.read();
        let at = model.log().namespaces();
        if self.all_at == Some(at) {
            return;
        }
        self.all = model.namespaces().map(String::from).collect();
        drop(model);
        self.all_at = Some(at);
        self.namespaces.retain(|name| self.all.contains(name));
        self.reviewed.retain(|name| self.all.contains(name));
    }

    /// Reviews all namespaces when that is due, and otherwise new ones. Namespaces whose review
    /// fails stay as the client knows them until the API server answers.
    async fn review(&mut self) {
        let now = Instant::now();
        let is_due = now >= self.review_at;
        let is_retry = self.retry_at.is_none_or(|at| now >= at);
        let is_asked = |name: &&String| is_due || (is_retry && !self.reviewed.contains(*name));
        if !is_due && self.retry_at.is_none() && self.reviewed.len() == self.all.len() {
            return;
        }
        let asked: Vec<String> = self.all.iter().filter(is_asked).cloned().collect();
        if asked.is_empty() && !is_due {
            // The namespaces whose review failed are gone.
            if is_retry {
                self.retry_at = None;
            }
            return;
        }
        let answers = self.rights(&asked).await;
        self.retry_at = None;
        for (name, answer) in answers {
            match answer {
                Ok(true) => drop(self.namespaces.insert(name.clone())),
                Ok(false) => drop(self.namespaces.remove(&name)),
                Err(error) => {
                    tracing::debug!(%error, namespace = name, "Cannot ask what a user may see");
                    self.reviewed.remove(&name);
                    self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
                    continue;
                }
            }
            self.reviewed.insert(name);
        }
        if is_due {
            self.review_at = Instant::now() + self.review_interval();
        }
    }

    /// Reviews the right in each namespace, with one request if possible.
    async fn rights(&mut self, asked: &[String]) -> Vec<(String, Result<bool, AccessError>)> {
        let user = &Arc::clone(&self.user.borrow_and_update());
        self.review_count = 1;
        let everywhere = self.has_right(user, &Scope::AllNamespaces).await;
        if !matches!(everywhere, Ok(false)) {
            let same = |name: &String| (name.clone(), everywhere.clone());
            return asked.iter().map(same).collect();
        }
        self.review_count += asked.len();
        let this = &*self;
        let reviews = stream::iter(asked.iter().cloned()).map(|namespace| async move {
            let scope = Scope::Namespace(namespace.clone());
            let allowed = this.has_right(user, &scope).await;
            (namespace, allowed)
        });

        reviews.buffer_unordered(PARALLEL_REVIEWS).collect().await
    }

    async fn has_right(&self, user: &Arc<User>, scope: &Scope) -> Result<bool, AccessError> {
        // The client waits for the snapshot.
        if self.cursor.is_at_start() {
            self.access.allows(user, scope).await
        } else {
            self.access.allows_in_background(user, scope).await
        }
    }

    /// The interval until the next review.
    fn review_interval(&mut self) -> Duration {
        self.polled = None;
        let user = Arc::clone(&self.user.borrow());
        let (polled, of_all) = self.access.start_polling(&user, self.review_count);
        self.polled = Some(polled);
        let count = u32::try_from(self.review_count).unwrap_or(u32::MAX);

        REVIEW_INTERVAL
            .max(of_all)
            .max(NAMESPACE_REVIEW_INTERVAL.saturating_mul(count))
    }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
mod scale;

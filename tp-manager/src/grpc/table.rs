//! The stream of what one user may see.

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
    access::{Access, AccessError, Questions, Scope, User},
    model::{
        SharedModel,
        table::{Change, Known, PART},
    },
};

/// Changes come in bursts: a rollout, a new namespace with everything in it.
const GATHER: Duration = Duration::from_millis(50);
/// How often a user's rights are looked at, at the most.
const RIGHTS: Duration = Duration::from_secs(5);
/// What one namespace may cost the API server.
const RIGHTS_PER_NAMESPACE: Duration = Duration::from_millis(25);
const PARALLEL_REVIEWS: usize = 16;
const RETRY: Duration = Duration::from_secs(1);

struct Watch {
    model: SharedModel,
    changes: watch::Receiver<u64>,
    access: Arc<Access>,
    user: watch::Receiver<Arc<User>>,
    /// What the client knows.
    known: Known,
    /// The namespaces that there are, and the revision at which they were looked at.
    all: BTreeSet<String>,
    all_at: Option<u64>,
    /// Namespaces in which the user has the right, among those that were asked about.
    namespaces: BTreeSet<String>,
    reviewed: BTreeSet<String>,
    review_at: Instant,
    /// When what could not be asked is asked again.
    retry_at: Option<Instant>,
    /// The reviews of the last time.
    cost: usize,
    questions: Option<Questions>,
    /// What the client is about to be told.
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
        known: Known::new(PART),
        all: BTreeSet::new(),
        all_at: None,
        namespaces: BTreeSet::new(),
        reviewed: BTreeSet::new(),
        review_at: Instant::now(),
        retry_at: None,
        cost: 0,
        questions: None,
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
            // A session that waits keeps no room for hundreds of changes.
            self.ready = Vec::new().into_iter();
            if !self.known.has_more() {
                self.wait().await;
            }
            // Boxed, for the same reason.
            Box::pin(self.look()).await;
        }
    }

    async fn wait(&mut self) {
        let due = self.review_at.min(self.retry_at.unwrap_or(self.review_at));
        if self.known.is_nothing() {
            // The first look is due; after a failure, soon.
            sleep_until(due).await;
            return;
        }
        tokio::select! {
            Ok(()) = self.changes.changed() => sleep(GATHER).await,
            // In other groups, and so with other rights.
            Ok(()) = self.user.changed() => self.review_at = Instant::now(),
            () = sleep_until(due) => {}
        }
        self.changes.mark_unchanged();
    }

    async fn look(&mut self) {
        self.look_at_namespaces();
        self.review().await;
        // A table without what could not be asked would take the names away from the client.
        if self.known.is_nothing() && self.retry_at.is_some() {
            return;
        }
        let changes = self.known.follow(&self.model.read(), &self.namespaces);
        self.ready = changes.into_iter();
    }

    fn look_at_namespaces(&mut self) {
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

    /// Asks for all namespaces when that is due, and else for those that are new. What the client
    /// knows of those that cannot be asked stays until the API server answers.
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
            // What could not be asked about has gone.
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
                    self.retry_at = Some(Instant::now() + RETRY);
                    continue;
                }
            }
            self.reviewed.insert(name);
        }
        if is_due {
            self.review_at = Instant::now() + self.pause();
        }
    }

    /// Whether the user has the right in each, in one question where possible.
    async fn rights(&mut self, asked: &[String]) -> Vec<(String, Result<bool, AccessError>)> {
        let user = &Arc::clone(&self.user.borrow_and_update());
        self.cost = 1;
        let everywhere = self.has(user, &Scope::AllNamespaces).await;
        if !matches!(everywhere, Ok(false)) {
            let same = |name: &String| (name.clone(), everywhere.clone());
            return asked.iter().map(same).collect();
        }
        self.cost += asked.len();
        let this = &*self;
        let questions = stream::iter(asked.iter().cloned()).map(|namespace| async move {
            let scope = Scope::Namespace(namespace.clone());
            let allowed = this.has(user, &scope).await;
            (namespace, allowed)
        });

        questions.buffer_unordered(PARALLEL_REVIEWS).collect().await
    }

    async fn has(&self, user: &Arc<User>, scope: &Scope) -> Result<bool, AccessError> {
        // The snapshot is waited for.
        if self.known.is_nothing() {
            self.access.allows(user, scope).await
        } else {
            self.access.allows_beside(user, scope).await
        }
    }

    /// Until the rights are looked at again.
    fn pause(&mut self) -> Duration {
        self.questions = None;
        let user = Arc::clone(&self.user.borrow());
        let (questions, of_all) = self.access.questions(&user, self.cost);
        self.questions = Some(questions);
        let count = u32::try_from(self.cost).unwrap_or(u32::MAX);

        RIGHTS
            .max(of_all)
            .max(RIGHTS_PER_NAMESPACE.saturating_mul(count))
    }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
mod scale;

//! The stream of what one user may see.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;
use tp_proto::tunnel::{TableEvent, table_event::Event};

use super::wire;
use crate::{
    access::{Access, AccessError, Questions, Scope, User},
    model::{
        SharedModel,
        table::{Change, View},
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
    /// What the client knows; none before the snapshot.
    known: Option<View>,
    /// Namespaces in which the user has the right, among those that were asked about.
    namespaces: BTreeSet<String>,
    reviewed: BTreeSet<String>,
    review_at: Instant,
    /// When what could not be asked is asked again.
    retry_at: Option<Instant>,
    /// The reviews of the last time.
    cost: usize,
    questions: Option<Questions>,
    ready: VecDeque<TableEvent>,
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
        known: None,
        namespaces: BTreeSet::new(),
        reviewed: BTreeSet::new(),
        review_at: Instant::now(),
        retry_at: None,
        cost: 0,
        questions: None,
        ready: VecDeque::new(),
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
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            self.wait().await;
            self.look().await;
        }
    }

    async fn wait(&mut self) {
        let due = self.review_at.min(self.retry_at.unwrap_or(self.review_at));
        if self.known.is_none() {
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
        let all: BTreeSet<String> = self.model.read().namespaces().map(String::from).collect();
        self.namespaces.retain(|name| all.contains(name));
        self.reviewed.retain(|name| all.contains(name));
        self.review(&all).await;
        // A table without what could not be asked would take the names away from the client.
        if self.known.is_none() && self.retry_at.is_some() {
            return;
        }
        let view = View::of(&self.model.read(), self.namespaces.clone());
        self.ready.extend(events_to(self.known.as_ref(), &view));
        self.known = Some(view);
    }

    /// Asks for all namespaces when that is due, and else for those that are new. What the client
    /// knows of those that cannot be asked stays until the API server answers.
    async fn review(&mut self, all: &BTreeSet<String>) {
        let now = Instant::now();
        let is_due = now >= self.review_at;
        let is_retry = self.retry_at.is_none_or(|at| now >= at);
        let is_asked = |name: &&String| is_due || (is_retry && !self.reviewed.contains(*name));
        let asked: Vec<String> = all.iter().filter(is_asked).cloned().collect();
        if asked.is_empty() && !is_due {
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
        match self.known {
            None => self.access.allows(user, scope).await,
            Some(_) => self.access.allows_beside(user, scope).await,
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

fn events_to(known: Option<&View>, view: &View) -> Vec<TableEvent> {
    let Some(known) = known else {
        return vec![event(Event::Snapshot(wire::snapshot(view)))];
    };
    let changes = known.changes_to(view).into_iter();
    changes
        .map(|change| {
            event(match change {
                Change::Frame => Event::Replaced(wire::frame(view)),
                Change::Applied(name, service) => {
                    Event::ServiceApplied(wire::service(&name, &service))
                }
                Change::Removed(name) => Event::ServiceRemoved(wire::service_name(&name)),
            })
        })
        .collect()
}

fn event(event: Event) -> TableEvent {
    TableEvent { event: Some(event) }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, ObjectName, Service, Update};

    fn view(services: &[&str]) -> View {
        let mut model = Model::default();
        for name in services {
            let name = ObjectName::new("shop", *name);
            model.update_services(Update::Applied(name, Service::default()));
        }
        View::of(&model, BTreeSet::from(["shop".to_owned()]))
    }

    #[test]
    fn the_first_event_is_a_snapshot_of_everything() {
        let events = events_to(None, &view(&["a", "b"]));

        let [
            TableEvent {
                event: Some(Event::Snapshot(snapshot)),
            },
        ] = events.as_slice()
        else {
            panic!("{events:?}");
        };
        assert_eq!(snapshot.services.len(), 2);
        assert_eq!(snapshot.namespaces, ["shop"]);
    }

    #[test]
    fn later_events_are_changes_only() {
        let events = events_to(Some(&view(&["a", "b"])), &view(&["b", "c"]));

        let kinds: Vec<bool> = events
            .iter()
            .map(|event| matches!(event.event, Some(Event::ServiceApplied(_))))
            .collect();
        assert_eq!(kinds, [false, true]);
    }
}

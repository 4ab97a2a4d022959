//! The stream of what one user may see.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tonic::Status;
use tp_proto::tunnel::{TableEvent, table_event::Event};

use super::wire;
use crate::{
    access::{Access, AccessError, Scope, User},
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
    ready: VecDeque<TableEvent>,
}

/// One snapshot, then every change of it.
pub(super) fn events(
    model: SharedModel,
    access: Arc<Access>,
    user: watch::Receiver<Arc<User>>,
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
        ready: VecDeque::new(),
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
        if self.known.is_none() {
            // The first look is due; after a failure, soon.
            sleep_until(self.review_at).await;
            return;
        }
        tokio::select! {
            Ok(()) = self.changes.changed() => sleep(GATHER).await,
            // In other groups, and so with other rights.
            Ok(()) = self.user.changed() => self.review_at = Instant::now(),
            () = sleep_until(self.review_at) => {}
        }
        self.changes.mark_unchanged();
    }

    async fn look(&mut self) {
        let all: Vec<String> = self.model.read().namespaces().map(String::from).collect();
        let is_new = |name: &String| !self.reviewed.contains(name);
        if Instant::now() >= self.review_at || all.iter().any(is_new) {
            let user = Arc::clone(&self.user.borrow_and_update());
            match self.reachable(&user, &all).await {
                Ok(namespaces) => {
                    self.namespaces = namespaces;
                    self.reviewed = all.iter().cloned().collect();
                    let cost = RIGHTS_PER_NAMESPACE
                        .saturating_mul(u32::try_from(all.len()).unwrap_or(u32::MAX));
                    self.review_at = Instant::now() + RIGHTS.max(cost);
                }
                Err(error) => {
                    // What the client knows stays until the API server answers.
                    tracing::debug!(%error, "Cannot ask what a user may see");
                    self.review_at = Instant::now() + RETRY;
                    return;
                }
            }
        }
        let existing = all.into_iter().collect();
        let visible = self.namespaces.intersection(&existing).cloned().collect();
        let view = View::of(&self.model.read(), visible);
        self.ready.extend(events_to(self.known.as_ref(), &view));
        self.known = Some(view);
    }

    /// The namespaces in which the user has the right, in one question where possible.
    async fn reachable(
        &self,
        user: &User,
        all: &[String],
    ) -> Result<BTreeSet<String>, AccessError> {
        if self.access.allows(user, &Scope::AllNamespaces).await? {
            return Ok(all.iter().cloned().collect());
        }
        let questions = stream::iter(all.iter().cloned()).map(|namespace| async move {
            let scope = Scope::Namespace(namespace.clone());
            let allowed = self.access.allows(user, &scope).await?;
            Ok(allowed.then_some(namespace))
        });
        let answers: Vec<Result<Option<String>, AccessError>> =
            questions.buffer_unordered(PARALLEL_REVIEWS).collect().await;

        answers.into_iter().filter_map(Result::transpose).collect()
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

//! What the manager is told of this session's intercepts, and what it says of them.

use std::{collections::BTreeMap, convert::Infallible, future::pending, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tokio::time::sleep;
use tp_core::backoff::Backoff;
use tp_proto::tunnel::{InterceptStates, LocalIntercept, LocalIntercepts, LocalPort};

use super::{
    super::shared::ActiveTunnel, Entries, EntryPhase, OwnIntercept, OwnIntercepts, shortcut,
};

const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(250);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(10);

impl OwnIntercepts {
    /// Serves the intercepts by each tunnel, until the connection ends.
    pub(in super::super) async fn follow(self: Arc<Self>) {
        let mut up = self.shared.up.subscribe();
        loop {
            let active = up.borrow_and_update().clone();
            let served = async {
                match active {
                    Some(active) => self.serve_tunnel(&active).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                never = served => match never {},
                never = self.lend_names() => match never {},
                never = self.sweep() => match never {},
                changed = up.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// While a service of another namespace is intercepted, its name alone resolves as well.
    async fn lend_names(&self) -> Infallible {
        let mut entries = self.entries.subscribe();
        let mut last = None;
        loop {
            let names = services(&entries.borrow_and_update());
            if last.as_ref() != Some(&names) {
                self.shared.lend(names.clone());
                last = Some(names);
            }
            if entries.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    async fn serve_tunnel(&self, active: &ActiveTunnel) -> Infallible {
        tokio::select! {
            never = self.exchange(active) => never,
            never = self.renew_all(&active.session) => never,
            never = self.look_for_ended() => never,
        }
    }

    /// Tells the manager, and hears from it.
    async fn exchange(&self, active: &ActiveTunnel) -> Infallible {
        let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
        let mut entries = self.entries.subscribe();
        loop {
            if entries.wait_for(|it| !it.is_empty()).await.is_err() {
                return pending().await;
            }
            let announcements = self.announcements(active.session.uid.clone());
            let mut manager = active.manager.clone();
            let reason = match manager.serve_intercepts(announcements).await {
                Ok(answered) => {
                    let mut answers = answered.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(states)) => {
                                backoff.reset();
                                self.apply(&states);
                            }
                            Ok(None) => break "the traffic manager ended the stream".to_owned(),
                            Err(status) => break status.message().to_owned(),
                        }
                    }
                }
                Err(status) => status.message().to_owned(),
            };
            tracing::info!(%reason, "Intercepts not served, trying again");
            sleep(backoff.pause(fastrand::f64())).await;
        }
    }

    /// Each announcement that differs from the one before; a slow reader gets the newest.
    fn announcements(&self, session: String) -> impl Stream<Item = LocalIntercepts> + Send + use<> {
        let entries = self.entries.subscribe();
        let last: Option<LocalIntercepts> = None;

        stream::unfold(
            (entries, last, session),
            |(mut entries, last, session)| async move {
                loop {
                    let now = announcement(&entries.borrow_and_update(), &session);
                    if last.as_ref() != Some(&now) {
                        return Some((now.clone(), (entries, Some(now), session)));
                    }
                    entries.changed().await.ok()?;
                }
            },
        )
    }

    /// What is not among the states, the manager does not know.
    pub(super) fn apply(&self, states: &InterceptStates) {
        self.entries.send_if_modified(|entries| {
            let mut is_changed = false;
            for entry in entries.values_mut() {
                let Some(made) = &entry.made else { continue };
                let state = states.intercepts.iter().find(|it| it.uid == made.uid);
                if entry.state.as_ref() != state {
                    entry.state = state.cloned();
                    is_changed = true;
                }
            }
            is_changed
        });
    }
}

/// The services that lead to intercepted ports, with their namespaces.
pub(super) fn services(entries: &Entries) -> BTreeMap<String, String> {
    let stands = |entry: &&OwnIntercept| entry.phase != EntryPhase::Ended;
    let wanted = entries.values().filter(stands).map(|entry| &entry.wanted);
    let named = wanted.flat_map(|wanted| {
        let services = wanted.ports.iter().flat_map(|port| &port.found.services);
        let names = services.map(|service| service.split(':').next().unwrap_or_default());
        names.map(|name| (name.to_owned(), wanted.namespace.clone()))
    });

    named.collect()
}

/// The intercepts whose objects name the Session of the tunnel.
pub(super) fn announcement(entries: &Entries, session: &str) -> LocalIntercepts {
    let announced = entries.values().filter_map(|entry| {
        let made = entry.made.as_ref()?;
        let is_served = made.session == session && entry.phase != EntryPhase::Ended;
        let ports = entry.ports.iter().map(|(port, state)| LocalPort {
            port: (*port).into(),
            is_listening: state.is_listening,
        });

        is_served.then(|| LocalIntercept {
            uid: made.uid.clone(),
            ports: ports.collect(),
            services: shortcut::services(&entry.wanted),
        })
    });

    LocalIntercepts {
        intercepts: announced.collect(),
    }
}

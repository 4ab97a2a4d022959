//! Deletes Sessions that nobody will use again, and the Intercepts of Sessions that are gone. Every replica does it; deleting twice does no harm.
//!
//! A client that lost its connection, or slept for longer than the tunnel waits, makes a new
//! Session with a new key and never uses the old one again. A replica deletes only Sessions that
//! were connected to itself: only the status names another replica, and the status is for people.
//! Sessions that never connected, or whose replica has ended, stay until their lifetime is over.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, interval, timeout};
use tp_process::sync;
use tp_proto::crd::{Intercept, Session};
use tp_transport::SessionRef;

use crate::{intercepts::Intercepts, sessions::Sessions};

const INTERVAL: Duration = Duration::from_secs(10);
/// A client that was not killed deletes its Session itself before this. The tunnel has already
/// waited for a silent client.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sessions whose connection to this replica has ended.
#[derive(Debug, Default)]
pub(crate) struct Disconnected(Mutex<BTreeMap<SessionRef, Instant>>);

impl Disconnected {
    pub(crate) fn insert(&self, session: SessionRef) {
        self.lock().insert(session, Instant::now());
    }

    pub(crate) fn remove(&self, session: &SessionRef) {
        self.lock().remove(session);
    }

    /// How long this Session has been without its connection to this replica.
    pub(crate) fn since(&self, session: &SessionRef) -> Option<Duration> {
        self.lock().get(session).map(Instant::elapsed)
    }

    /// Removes and returns the Sessions that have been disconnected for too long.
    fn take_abandoned(&self, now: Instant) -> Vec<SessionRef> {
        let mut disconnected = self.lock();
        let gone: Vec<SessionRef> = disconnected
            .iter()
            .filter(|(_, since)| now.duration_since(**since) > ABANDONED_AFTER)
            .map(|(session, _)| session.clone())
            .collect();
        for session in &gone {
            disconnected.remove(session);
        }

        gone
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionRef, Instant>> {
        sync::lock(&self.0)
    }
}

/// Runs until it is aborted.
pub(crate) async fn keep(
    client: Client,
    sessions: Arc<Sessions>,
    disconnected: Arc<Disconnected>,
    intercepts: Arc<Intercepts>,
) {
    let mut tick = interval(INTERVAL);
    loop {
        tick.tick().await;
        let mut unused = sessions.expired(Timestamp::now());
        unused.extend(disconnected.take_abandoned(Instant::now()));
        for session in unused {
            let api: Api<Session> = Api::namespaced(client.clone(), &session.namespace);
            delete(&api, &session.name, &session.uid).await;
        }
        for orphan in intercepts.orphans(Timestamp::now()) {
            let api: Api<Intercept> = Api::namespaced(client.clone(), &orphan.object.namespace);
            delete(&api, &orphan.object.name, &orphan.uid).await;
        }
    }
}

async fn delete<K>(api: &Api<K>, name: &str, uid: &str)
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match timeout(TIMEOUT, api.delete(name, &params)).await {
        Ok(Ok(_)) => tracing::debug!(name, "Unused object deleted"),
        Ok(Err(error)) => tracing::debug!(%error, "Cannot delete an unused object"),
        Err(_) => tracing::debug!("Deleting an unused object took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_stays_away_is_abandoned() {
        let session = |name: &str| SessionRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
        };
        let disconnected = Disconnected::default();
        disconnected.insert(session("a"));
        disconnected.insert(session("b"));
        disconnected.remove(&session("b"));

        assert!(disconnected.take_abandoned(Instant::now()).is_empty());
        let later = Instant::now() + ABANDONED_AFTER + Duration::from_secs(1);
        assert_eq!(disconnected.take_abandoned(later), [session("a")]);
    }
}

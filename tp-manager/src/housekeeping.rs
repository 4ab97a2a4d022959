//! Deletes Sessions that nobody will use again. Every replica does it; a second deletion is as good.
//!
//! A client that has lost its connection, or slept for longer than the tunnel waits for it, makes a
//! new Session with a new key: what is left of the old one serves nobody. A replica deletes only
//! what was connected to itself, because whether another replica has a Session stands nowhere but
//! in its status, which is for people. Sessions that never connected, or whose replica has ended
//! with them, stay until their lifetime is over.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};
use tokio::time::{Instant, interval, timeout};
use tp_proto::crd::Session;
use tp_transport::SessionRef;

use crate::{sessions::Sessions, sync};

const INTERVAL: Duration = Duration::from_secs(10);
/// A client whose connection ended deletes its Session itself, unless it was killed. The tunnel has
/// waited for a silent one before.
const ABANDONED: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sessions that were connected here and are not any more.
#[derive(Debug, Default)]
pub(crate) struct Departed(Mutex<BTreeMap<SessionRef, Instant>>);

impl Departed {
    pub(crate) fn left(&self, session: SessionRef) {
        self.lock().insert(session, Instant::now());
    }

    pub(crate) fn returned(&self, session: &SessionRef) {
        self.lock().remove(session);
    }

    /// Those who have been away for too long.
    fn take_abandoned(&self, now: Instant) -> Vec<SessionRef> {
        let mut departed = self.lock();
        let gone: Vec<SessionRef> = departed
            .iter()
            .filter(|(_, since)| now.duration_since(**since) > ABANDONED)
            .map(|(session, _)| session.clone())
            .collect();
        for session in &gone {
            departed.remove(session);
        }

        gone
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionRef, Instant>> {
        sync::lock(&self.0)
    }
}

/// Runs until it is aborted.
pub(crate) async fn keep(client: Client, sessions: Arc<Sessions>, departed: Arc<Departed>) {
    let mut tick = interval(INTERVAL);
    loop {
        tick.tick().await;
        let mut useless = sessions.expired(Timestamp::now());
        useless.extend(departed.take_abandoned(Instant::now()));
        for session in useless {
            delete(&client, &session).await;
        }
    }
}

async fn delete(client: &Client, session: &SessionRef) {
    let api: Api<Session> = Api::namespaced(client.clone(), &session.namespace);
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(session.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match timeout(TIMEOUT, api.delete(&session.name, &params)).await {
        Ok(Ok(_)) => tracing::debug!(%session, "Unused Session deleted"),
        Ok(Err(error)) => tracing::debug!(%error, "Cannot delete a Session"),
        Err(_) => tracing::debug!("Deleting a Session took too long"),
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
        let departed = Departed::default();
        departed.left(session("a"));
        departed.left(session("b"));
        departed.returned(&session("b"));

        assert!(departed.take_abandoned(Instant::now()).is_empty());
        let later = Instant::now() + ABANDONED + Duration::from_secs(1);
        assert_eq!(departed.take_abandoned(later), [session("a")]);
    }
}

//! Deletes Sessions that nobody will use again, and the Intercepts of Sessions that are gone. Every
//! replica does it; deleting twice does no harm.
//!
//! A client that lost its connection, or slept for longer than the tunnel waits, makes a new
//! Session with a new key and never uses the old one again. A replica deletes only Sessions that
//! were connected to itself: only the status names another replica, and the status is for people.
//! Sessions that never connected, or whose replica has ended, stay until their lifetime is over.

use std::{fmt::Debug, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, interval, timeout};
use tp_proto::crd::{Intercept, Session};

use crate::{disconnected::Disconnected, index, intercepts::Intercepts, sessions::Sessions};

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

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
    match timeout(TIMEOUT, api.delete(name, &index::only(uid))).await {
        Ok(Ok(_)) => tracing::debug!(name, "Unused object deleted"),
        Ok(Err(error)) => tracing::debug!(%error, "Cannot delete an unused object"),
        Err(_) => tracing::debug!("Deleting an unused object took too long"),
    }
}

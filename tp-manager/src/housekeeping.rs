//! Deletes Sessions that nobody will use again, the Intercepts of Sessions that are gone, and those whose
//! user may not make them any more. Every replica does it; deleting twice does no harm.
//!
//! A client that lost its connection, or slept for longer than the tunnel waits, makes a new
//! Session with a new key and never uses the old one again. While Intercepts name the old one, it is
//! kept for as long as they hold their ports. A replica deletes only Sessions that were connected to
//! itself, or to the process before it. Others that are without a connection hold no port, and stay
//! until their lifetime is over.

use std::{fmt::Debug, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, interval, timeout};
use tp_proto::crd::{Intercept, Session};
use tp_transport::SessionRef;

use crate::{
    disconnected::{ABANDONED_AFTER, Disconnected},
    index,
    intercepts::Intercepts,
    model::ObjectName,
    sessions::Sessions,
};

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
        let kept_for = |session: &SessionRef| intercepts.kept_for(session, ABANDONED_AFTER);
        unused.extend(disconnected.abandoned(Instant::now(), kept_for));
        unused.extend(intercepts.abandoned());
        for session in unused {
            let api: Api<Session> = Api::namespaced(client.clone(), &session.namespace);
            delete(&api, &session.name, &session.uid).await;
        }
        // What could not be deleted is there the next time.
        disconnected.retain(|session| sessions.exists(session));
        for orphan in intercepts.orphans(Instant::now()) {
            if !is_gone(&client, &orphan.session).await {
                continue;
            }
            let api: Api<Intercept> = Api::namespaced(client.clone(), &orphan.object.namespace);
            delete(&api, &orphan.object.name, &orphan.uid).await;
        }
        for unlawful in intercepts.unlawful(Instant::now()) {
            let ObjectName { namespace, name } = &unlawful.object;
            let user = unlawful.user().name();
            tracing::info!(
                namespace,
                name,
                user,
                "Intercept ends: its user lost the right"
            );
            let api: Api<Intercept> = Api::namespaced(client.clone(), namespace);
            delete(&api, name, &unlawful.uid).await;
        }
    }
}

/// Returns whether the API server says that there is no such Session, or another one of its name.
async fn is_gone(client: &Client, session: &SessionRef) -> bool {
    let api: Api<Session> = Api::namespaced(client.clone(), &session.namespace);
    match timeout(TIMEOUT, api.get_metadata_opt(&session.name)).await {
        Ok(Ok(found)) => found.is_none_or(|it| it.uid().as_deref() != Some(&session.uid)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Cannot tell whether a Session is gone");
            false
        }
        Err(_) => false,
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn only_a_session_that_the_api_server_does_not_have_is_gone() {
        let answer = Arc::new(Mutex::new((200, json!({"metadata": {"uid": "s1"}}))));
        let answers = Arc::clone(&answer);
        let service = tower::service_fn(move |request: Request<Body>| {
            assert_eq!(request.method(), Method::GET);
            let (code, body) = answers.lock().unwrap().clone();
            let response = Response::builder().status(code);
            let body = Body::from(body.to_string().into_bytes());
            std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
        });
        let client = Client::new(service, "default");
        let session = SessionRef {
            namespace: "shop".into(),
            name: "alice".into(),
            uid: "s1".into(),
        };
        let is_gone = async |code: u16, body: serde_json::Value| {
            *answer.lock().unwrap() = (code, body);
            is_gone(&client, &session).await
        };

        let failed = |code: u16| json!({"status": "Failure", "code": code, "reason": "x"});
        assert!(!is_gone(200, json!({"metadata": {"uid": "s1"}})).await);
        assert!(!is_gone(500, failed(500)).await);
        assert!(!is_gone(403, failed(403)).await);
        assert!(is_gone(200, json!({"metadata": {"uid": "s2"}})).await);
        let absent = json!({"status": "Failure", "code": 404, "reason": "NotFound"});
        assert!(is_gone(404, absent).await);
    }
}

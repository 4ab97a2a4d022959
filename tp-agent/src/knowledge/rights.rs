//! Who may read the environment of a container, by the agent's own questions to the API server: a
//! manager's word is not enough.

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::{Api, Client};
use tokio::time::timeout;
use tp_proto::crd::{Session, SessionReference, UserInfo};

use super::{REQUEST_TIMEOUT, is_allowed};
use crate::environ::SessionRights;

/// Asks the API server.
pub(crate) struct ClusterRights(pub(crate) Client);

impl SessionRights for ClusterRights {
    fn check_exec(
        &self,
        session: SessionReference,
        namespace: String,
    ) -> BoxFuture<'static, Result<(), String>> {
        check_exec(self.0.clone(), session, namespace).boxed()
    }
}

async fn check_exec(
    client: Client,
    session: SessionReference,
    namespace: String,
) -> Result<(), String> {
    let api: Api<Session> = Api::namespaced(client.clone(), &session.namespace);
    let got = timeout(REQUEST_TIMEOUT, api.get_opt(&session.name)).await;
    let got = got.map_err(|_| "the API server did not answer in time".to_owned())?;
    let got = got.map_err(|error| format!("Session {} cannot be read: {error}", session.name))?;
    let user = user_of(got, &session.uid)
        .ok_or_else(|| format!("there is no such Session {}: connect again", session.name))?;
    let denied = format!(
        "{} may not create pods/exec in namespace {namespace}, which reading an environment takes",
        user.username
    );
    let attributes = ResourceAttributes {
        group: Some(String::new()),
        resource: Some("pods".into()),
        subresource: Some("exec".into()),
        verb: Some("create".into()),
        namespace: Some(namespace),
        ..ResourceAttributes::default()
    };
    match is_allowed(client, user, attributes).await? {
        true => Ok(()),
        false => Err(denied),
    }
}

/// The user who made the Session, if it is as they made it.
fn user_of(session: Option<Session>, uid: &str) -> Option<UserInfo> {
    let session = session?;
    let metadata = &session.metadata;
    let is_as_made = metadata.generation == Some(1) && metadata.deletion_timestamp.is_none();
    let is_it = !uid.is_empty() && metadata.uid.as_deref() == Some(uid);

    (is_as_made && is_it && session.spec.renews.is_none())
        .then_some(session.spec.user)
        .filter(|user| !user.username.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn session() -> Value {
        json!({
            "apiVersion": "tp.internal/v1alpha1",
            "kind": "Session",
            "metadata": {"name": "s", "namespace": "shop", "uid": "u", "generation": 1},
            "spec": {"user": {"username": "alice"}, "keyHash": "00", "clientVersion": "0.1.0"},
        })
    }

    fn user(session: Value, uid: &str) -> Option<String> {
        user_of(serde_json::from_value(session).unwrap(), uid).map(|user| user.username)
    }

    #[test]
    fn the_user_is_that_of_the_very_session_as_it_was_made() {
        assert_eq!(user(session(), "u").as_deref(), Some("alice"));
        assert_eq!(user(session(), "v"), None);
        assert_eq!(user(session(), ""), None);
        assert_eq!(user_of(None, "u"), None);
        for (pointer, value) in [
            ("/metadata/generation", json!(2)),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            ("/spec/renews", json!("w")),
            ("/spec/user/username", json!("")),
        ] {
            let mut session = session();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            session.pointer_mut(parent).unwrap()[key] = value;
            assert_eq!(user(session, "u"), None, "{pointer}");
        }
    }
}

//! Who an agent is: the API server reviews its token.

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::{Api, Client, api::PostParams};
use tp_proto::crd::{AGENT_NAME, AGENT_NAMESPACE, MANAGER_AUDIENCE};

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a token says of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentIdentity {
    pub(crate) node: String,
    /// Name and UID of its pod.
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
}

/// A sentence for the agent's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It is no agent's.
    #[error("{0}")]
    Refused(String),
    /// Nobody says whose it is.
    #[error("{0}")]
    Unknown(String),
}

/// Reviews tokens.
pub(crate) trait Tokens: Send + Sync + 'static {
    fn review(&self, token: String) -> BoxFuture<'static, Result<AgentIdentity, TokenError>>;
}

/// Asks the API server.
pub(crate) struct TokenReviews(pub(crate) Client);

impl Tokens for TokenReviews {
    fn review(&self, token: String) -> BoxFuture<'static, Result<AgentIdentity, TokenError>> {
        let reviews: Api<TokenReview> = Api::all(self.0.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token),
                audiences: Some(vec![MANAGER_AUDIENCE.into()]),
            },
            ..TokenReview::default()
        };

        Box::pin(async move {
            let reviewed = reviews.create(&PostParams::default(), &review).await;
            let unknown = |error| format!("the API server cannot review the token: {error}");
            let status = reviewed
                .map_err(|error| TokenError::Unknown(unknown(error)))?
                .status;

            identity(status.unwrap_or_default()).map_err(TokenError::Refused)
        })
    }
}

fn identity(status: TokenReviewStatus) -> Result<AgentIdentity, String> {
    if status.authenticated != Some(true) {
        return Err("the token is not valid".into());
    }
    // An authenticator that does not know audiences leaves them out.
    if !status
        .audiences
        .iter()
        .flatten()
        .any(|it| it == MANAGER_AUDIENCE)
    {
        return Err(format!(
            "the token is not for the audience {MANAGER_AUDIENCE}"
        ));
    }
    let user: UserInfo = status.user.unwrap_or_default();
    let agent = format!("system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_NAME}");
    if user.username.as_deref() != Some(agent.as_str()) {
        return Err(format!("the token is not one of {agent}"));
    }
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };

    // What is bound to neither is a copy for use elsewhere, or was asked for by somebody else.
    let pod = one(POD_NAME).zip(one(POD_UID));
    let (pod, pod_uid) = pod.ok_or("the token is not bound to a pod")?;
    let node = one(NODE_NAME).ok_or(
        "the token is not bound to a node: Kubernetes does that from 1.30 on, unless its feature \
         ServiceAccountTokenPodNodeInfo is off",
    )?;

    Ok(AgentIdentity { node, pod, pod_uid })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> Result<AgentIdentity, String> {
        identity(serde_json::from_value(status).unwrap())
    }

    fn status() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["tp-manager"],
            "user": {
                "username": "system:serviceaccount:tp-agents:tp-agent",
                "extra": {NODE_NAME: ["node1"], POD_NAME: ["tp-agent-x"], POD_UID: ["7a"]},
            },
        })
    }

    #[test]
    fn an_agents_token_names_its_node() {
        let identity = of(status()).unwrap();

        assert_eq!(identity.node, "node1");
        assert_eq!((&*identity.pod, &*identity.pod_uid), ("tp-agent-x", "7a"));
    }

    #[test]
    fn any_other_token_is_refused() {
        for (pointer, value, reason) in [
            ("/authenticated", json!(false), "not valid"),
            ("/audiences", json!([]), "audience"),
            (
                "/audiences",
                json!(["https://kubernetes.default.svc"]),
                "audience",
            ),
            (
                "/user/username",
                json!("system:serviceaccount:shop:tp-agent"),
                "not one of",
            ),
            ("/user/extra", json!({}), "not bound to a pod"),
            (
                "/user/extra",
                json!({POD_NAME: ["tp-agent-x"], POD_UID: ["7a"]}),
                "not bound to a node",
            ),
            (
                "/user/extra",
                json!({NODE_NAME: ["node1"], POD_NAME: ["tp-agent-x"]}),
                "not bound to a pod",
            ),
        ] {
            let mut other = status();
            *other.pointer_mut(pointer).unwrap() = value;

            assert!(of(other).unwrap_err().contains(reason), "{pointer}");
        }
    }
}

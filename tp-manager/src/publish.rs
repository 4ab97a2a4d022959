//! Publishes the hash of this replica's key, and writes the status of Sessions.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tp_core::VERSION;
use tp_proto::crd::{MANAGER_CONFIG_MAP, MANAGER_VERSION_KEY, Session};
use tp_transport::{KeyHash, SessionRef};

/// Restores the hash if somebody has removed it.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Publisher {
    client: Client,
    namespace: String,
    pod: String,
}

impl Publisher {
    pub(crate) fn new(client: Client, namespace: String, pod: String) -> Self {
        Self {
            client,
            namespace,
            pod,
        }
    }

    /// Keeps the hash published until it is aborted.
    pub(crate) async fn keep(&self, key: KeyHash, published: watch::Sender<bool>) {
        loop {
            let data =
                json!({ (self.pod.clone()): key.to_string(), (MANAGER_VERSION_KEY): VERSION });
            let pause = match timeout(TIMEOUT, self.apply(data)).await {
                Ok(Ok(())) => {
                    if !published.send_replace(true) {
                        tracing::info!("Hash of this replica's key published");
                    }
                    REFRESH_INTERVAL
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "Cannot publish the hash of the key");
                    RETRY_INTERVAL
                }
                Err(_) => RETRY_INTERVAL,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Removes the hash: no client should dial a replica that ends.
    pub(crate) async fn withdraw(&self) {
        if !matches!(timeout(TIMEOUT, self.apply(json!({}))).await, Ok(Ok(()))) {
            tracing::debug!("Hash of the key stays published");
        }
    }

    async fn apply(&self, data: serde_json::Value) -> Result<(), kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": MANAGER_CONFIG_MAP},
            "data": data,
        });
        // Each replica owns its own entry; the version is shared.
        let params = PatchParams::apply(&self.pod).force();
        maps.patch(MANAGER_CONFIG_MAP, &params, &Patch::Apply(map))
            .await
            .map(|_| ())
    }

    /// Writes the status of a Session, which is for people: a failure changes nothing.
    pub(crate) async fn write_status(&self, session: &SessionRef, phase: &str) {
        let sessions: Api<Session> = Api::namespaced(self.client.clone(), &session.namespace);
        let status = json!({
            "metadata": {"uid": session.uid},
            "status": {
                "phase": phase,
                "replica": self.pod,
                "since": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            },
        });
        let params = PatchParams::default();
        let patch = Patch::Merge(status);
        let patched = sessions.patch_status(&session.name, &params, &patch);
        match timeout(TIMEOUT, patched).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "Cannot write the status of a Session"),
            Err(_) => tracing::debug!("Writing the status of a Session took too long"),
        }
    }
}

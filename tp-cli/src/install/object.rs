//! One Kubernetes object of any kind.

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use super::cluster::Cluster;

#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) value: Value,
}

impl Object {
    /// An object of the cluster, by kind and name.
    pub(crate) fn named(
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Self {
        let mut metadata = json!({ "name": name });
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }

        Self {
            value: json!({"apiVersion": api_version, "kind": kind, "metadata": metadata}),
        }
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.value.pointer("/metadata/namespace")?.as_str()
    }

    /// Its name in messages: "Role tp-system/tp-connect".
    pub(crate) fn title(&self) -> String {
        match self.namespace() {
            Some(namespace) => format!("{} {namespace}/{}", self.kind(), self.name()),
            None => format!("{} {}", self.kind(), self.name()),
        }
    }

    pub(crate) fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        let client = cluster.client().clone();
        let resource = self.resource();
        match self.namespace() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        }
    }

    fn resource(&self) -> ApiResource {
        let (group, version) = match self.text("/apiVersion").split_once('/') {
            Some((group, version)) => (group, version),
            None => ("", self.text("/apiVersion")),
        };

        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, self.kind()))
    }

    fn text(&self, pointer: &str) -> &str {
        self.value
            .pointer(pointer)
            .and_then(Value::as_str)
            .expect("manifests have apiVersion, kind and metadata.name")
    }
}

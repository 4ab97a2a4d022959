//! A cluster for tests, which holds objects.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{
    args::Expose,
    cluster::Cluster,
    manifests::{self, MANAGED_BY, Parameters},
    object::Object,
};
use crate::{
    cluster_args::ClusterArgs,
    fake_api_server::{self, Asked, refused},
};

/// The objects of a cluster by their paths.
pub(crate) type Objects = BTreeMap<String, Value>;

/// A cluster in which deleted objects are gone at once.
#[derive(Clone, Default)]
pub(crate) struct Lab(pub(crate) Arc<Mutex<Objects>>, pub(crate) Refused);

/// The kind of object that may not be listed.
pub(crate) type Refused = Option<&'static str>;

impl Lab {
    pub(crate) fn installed() -> Self {
        let cluster = Self::default();
        let mut parameters = Parameters::for_removal("tp-system");
        parameters.expose = Expose::NodePort;
        for object in manifests::render(&parameters) {
            cluster.add(&object);
        }
        for name in ["sessions", "intercepts"] {
            let path = format!("/apis/tp.internal/v1alpha1/{name}");
            cluster.0.lock().unwrap().insert(path, json!([]));
        }

        cluster
    }

    /// A cluster without tp.
    pub(crate) fn bare() -> Self {
        Self::default()
    }

    pub(crate) fn add(&self, object: &Object) {
        let path = path_of(object);
        self.0.lock().unwrap().insert(path, object.value.clone());
    }

    /// A binding to a role, with this managed-by label.
    pub(crate) fn bind(&self, namespace: &str, name: &str, role: &str, by: Option<&str>) {
        let mut object = Object::named(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            Some(namespace),
            name,
        );
        let kind = if role == "tp-user" {
            "ClusterRole"
        } else {
            "Role"
        };
        object.value["roleRef"] =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role});
        if let Some(by) = by {
            object.value["metadata"]["labels"] = json!({ MANAGED_BY: by });
        }
        self.add(&object);
    }

    pub(crate) fn found_by_name(&self, part: &str) -> Vec<String> {
        let names = self.names();

        names.into_iter().filter(|it| it.contains(part)).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let objects = self.0.lock().unwrap();
        let named = objects
            .values()
            .filter_map(|it| it["metadata"]["name"].as_str());

        named.map(str::to_owned).collect()
    }

    fn answer(&self, asked: &Asked) -> (u16, Value) {
        let path = asked.path.split('?').next().unwrap().to_owned();
        let mut objects = self.0.lock().unwrap();
        if self.1.is_some_and(|kind| path.ends_with(kind)) {
            return refused(403);
        }
        if path.ends_with("/selfsubjectreviews") {
            return (201, json!({"status": {"userInfo": {"username": "admin"}}}));
        }
        if asked.method == "DELETE" {
            return match objects.remove(&path) {
                Some(object) => (200, object),
                None => refused(404),
            };
        }
        if let Some(object) = objects.get(&path).filter(|it| it.is_object()) {
            return (200, object.clone());
        }
        // The path of a list.
        let (parent, kind) = path.rsplit_once('/').unwrap();
        if path.contains("tp.internal/") && !objects.contains_key(&path) {
            return (404, json!("404 page not found\n"));
        }
        let is_listed = |at: &str| {
            let list = at
                .rsplit_once('/')
                .and_then(|(list, _)| list.rsplit_once('/'));
            list.is_some_and(|(above, of)| above.starts_with(parent) && of == kind)
        };
        const LISTS: [&str; 8] = [
            "nodes",
            "sessions",
            "intercepts",
            "services",
            "poddisruptionbudgets",
            "pods",
            "rolebindings",
            "clusterrolebindings",
        ];
        if !LISTS.contains(&kind) {
            return refused(404);
        }
        let items: Vec<&Value> = objects
            .iter()
            .filter(|(at, object)| object.is_object() && is_listed(at))
            .map(|(_, object)| object)
            .collect();

        (200, json!({"metadata": {}, "items": items}))
    }

    /// A kubeconfig of this cluster, for as long as the file is there.
    pub(crate) async fn kubeconfig(&self) -> NamedTempFile {
        let cluster = self.clone();

        fake_api_server::kubeconfig(move |asked| cluster.answer(asked)).await
    }

    /// A client's connection to this cluster.
    pub(crate) async fn connect(&self) -> Cluster {
        let kubeconfig = self.kubeconfig().await;
        let args = ClusterArgs {
            kubeconfig: Some(kubeconfig.path().to_owned()),
            ..Default::default()
        };

        Cluster::connect(&args, None).await.unwrap()
    }
}

/// The path of an object at the API server.
fn path_of(object: &Object) -> String {
    let version = object.value["apiVersion"].as_str().unwrap();
    let root = if version.contains('/') { "apis" } else { "api" };
    let kind = object.kind().to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    let namespace = match object.namespace() {
        Some(namespace) => format!("/namespaces/{namespace}"),
        None => String::new(),
    };

    format!("/{root}/{version}{namespace}/{plural}/{}", object.name())
}

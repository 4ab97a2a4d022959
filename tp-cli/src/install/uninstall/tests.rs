use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::{
    cli::{Cli, Command},
    fake_api_server::{self, Asked, refused},
    install::manifests::{self, MANAGED_BY, Parameters},
};

/// The objects of a cluster by their paths.
type Objects = BTreeMap<String, Value>;

/// A cluster in which deleted objects are gone at once.
#[derive(Clone, Default)]
struct Lab(Arc<Mutex<Objects>>, Refused);

/// The kind of object that may not be listed.
type Refused = Option<&'static str>;

impl Lab {
    fn installed() -> Self {
        let cluster = Self::default();
        let mut parameters = Parameters::for_removal("tp-system");
        parameters.expose = crate::install::args::Expose::NodePort;
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
    fn bare() -> Self {
        Self::default()
    }

    fn add(&self, object: &Object) {
        let path = path_of(object);
        self.0.lock().unwrap().insert(path, object.value.clone());
    }

    /// A binding to a role, with this managed-by label.
    fn bind(&self, namespace: &str, name: &str, role: &str, by: Option<&str>) {
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

    fn found_by_name(&self, part: &str) -> Vec<String> {
        let names = self.names();

        names.into_iter().filter(|it| it.contains(part)).collect()
    }

    fn names(&self) -> Vec<String> {
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
        const LISTS: [&str; 7] = [
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

    async fn uninstall(&self, flags: &[&str]) -> Result<(), Fault> {
        let cluster = self.clone();
        let kubeconfig = fake_api_server::kubeconfig(move |asked| cluster.answer(asked)).await;
        let file = kubeconfig.path().to_str().unwrap();
        let line = [&["tp", "uninstall", "--kubeconfig", file], flags].concat();
        let Command::Uninstall(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command");
        };
        let output = Output::new(Format::Json).silent();

        uninstall(*args, output, async { Ok(Remaining::Nothing) })
            .await
            .map_err(|error| error.downcast().unwrap())
    }

    /// The objects as `tp uninstall` finds them.
    async fn found(&self) -> Found {
        let cluster = self.clone();
        let kubeconfig = fake_api_server::kubeconfig(move |asked| cluster.answer(asked)).await;
        let args = crate::cluster_args::ClusterArgs {
            kubeconfig: Some(kubeconfig.path().to_owned()),
            ..Default::default()
        };
        let cluster = Cluster::connect(&args, None).await.unwrap();

        Found::of(&cluster, "tp-system", true).await.unwrap()
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

#[tokio::test]
async fn a_cluster_without_tp_has_nothing_to_uninstall() {
    for flags in [
        &[][..],
        &["--everything"],
        &["--dry-run"],
        &["--everything", "--dry-run"],
    ] {
        let fault = Lab::bare().uninstall(flags).await.unwrap_err();

        assert_eq!(fault.kind, FaultKind::NotInstalled, "{flags:?}: {fault}");
        assert!(
            fault
                .message
                .contains("not installed in the namespace tp-system"),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn a_second_uninstall_says_what_the_first_left() {
    let cluster = Lab::installed();

    cluster.uninstall(&[]).await.unwrap();
    let fault = cluster.uninstall(&[]).await.unwrap_err();

    assert_eq!(fault.kind, FaultKind::NotInstalled, "{fault}");
    for left in ["`tp uninstall --everything`", "Namespace tp-system"] {
        assert!(fault.message.contains(left), "{fault}");
    }
    assert!(!fault.message.contains("StatefulSet"), "{fault}");

    cluster.uninstall(&["--everything"]).await.unwrap();
    assert_eq!(cluster.names(), [""; 0]);
    cluster.uninstall(&["--everything"]).await.unwrap_err();
}

#[tokio::test]
async fn what_an_interrupted_uninstall_left_is_removed() {
    let cluster = Lab::installed();
    let path = "/apis/apps/v1/namespaces/tp-system/statefulsets/tp-manager";
    cluster.0.lock().unwrap().remove(path).unwrap();

    let found = cluster.found().await;
    let titles: Vec<String> = found
        .to_remove(false)
        .into_iter()
        .map(Object::title)
        .collect();
    assert!(!titles.contains(&"StatefulSet tp-system/tp-manager".to_owned()));
    assert_eq!(titles.first().unwrap(), "DaemonSet tp-agents/tp-agent");
    assert_eq!(titles.last().unwrap(), "Service tp-system/tp-manager-0");

    cluster.uninstall(&[]).await.unwrap();
    assert!(cluster.found().await.objects.is_empty());
}

#[tokio::test]
async fn an_installation_in_another_namespace_is_named_and_keeps_its_roles() {
    let cluster = Lab::installed();
    let before = cluster.names();

    let fault = cluster
        .uninstall(&["--manager-namespace", "net"])
        .await
        .unwrap_err();

    assert_eq!(fault.kind, FaultKind::NotInstalled, "{fault}");
    assert!(
        fault.message.contains("--manager-namespace tp-system"),
        "{fault}"
    );
    assert_eq!(cluster.names(), before);
}

#[tokio::test]
async fn only_everything_removes_bindings_and_only_those_that_grant_made() {
    let cluster = Lab::installed();
    cluster.bind("shop", "tp-use-user-alice", "tp-user", Some("tp"));
    cluster.bind(
        "tp-system",
        "tp-connect-user-alice",
        "tp-connect",
        Some("tp"),
    );
    cluster.bind("shop", "by-hand", "tp-user", None);
    cluster.bind("tp-system", "by-hand-too", "tp-connect", None);
    cluster.bind("shop", "foreign", "view", Some("tp"));

    let found = cluster.found().await;
    let said = text("S", &found, false, Remaining::Nothing);
    assert!(
        said.contains("shop/tp-use-user-alice, tp-system/tp-connect-user-alice\n"),
        "{said}"
    );
    assert!(
        said.contains("shop/by-hand, tp-system/by-hand-too\n"),
        "{said}"
    );
    assert_eq!(found.kept_bindings(false).len(), 4, "{found:?}");
    // Its namespace is removed.
    assert_eq!(found.kept_bindings(true), ["shop/by-hand"]);

    cluster.uninstall(&[]).await.unwrap();
    assert_eq!(cluster.found().await.granted.len(), 2);

    cluster.uninstall(&["--everything"]).await.unwrap();
    let left = cluster.names();
    assert!(!left.iter().any(|name| name.contains("alice")), "{left:?}");
    for name in ["by-hand", "foreign"] {
        assert!(left.contains(&name.to_owned()), "{left:?}");
    }
}

#[tokio::test]
async fn a_namespace_that_was_there_before_tp_stays() {
    let cluster = Lab::installed();
    let path = "/api/v1/namespaces/tp-system";
    cluster.0.lock().unwrap().get_mut(path).unwrap()["metadata"]["labels"] = json!({});

    let found = cluster.found().await;
    assert_eq!(found.foreign, ["tp-system"]);
    assert!(text("S", &found, true, Remaining::Nothing).contains("tp-system was there before tp"));

    cluster.uninstall(&["--everything"]).await.unwrap();
    assert_eq!(cluster.names(), ["tp-system"]);
}

#[tokio::test]
async fn only_everything_needs_the_right_to_list_bindings() {
    let mut cluster = Lab::installed();
    cluster.1 = Some("/rolebindings");

    let fault = cluster.uninstall(&["--everything"]).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::NoPermission, "{fault}");
    assert!(!cluster.found_by_name("tp-manager").is_empty());

    cluster.uninstall(&[]).await.unwrap();
    assert!(cluster.found_by_name("tp-manager").is_empty());
}

#[tokio::test]
async fn an_object_that_tp_did_not_make_stays_whatever_its_name() {
    let cluster = Lab::installed();
    let path = "/api/v1/namespaces/tp-system/services/tp-manager";
    cluster.0.lock().unwrap().get_mut(path).unwrap()["metadata"]["labels"] = json!({});

    let found = cluster.found().await;
    let said = text("S", &found, true, Remaining::Nothing);
    assert!(said.contains("Service tp-system/tp-manager"), "{said}");

    cluster.uninstall(&["--everything"]).await.unwrap();
    assert!(cluster.0.lock().unwrap().contains_key(path));
}

#[tokio::test]
async fn a_manager_namespace_that_is_no_name_is_refused_before_anything_is_asked() {
    for command in ["connect", "check", "install", "uninstall", "grant"] {
        let line = ["tp", command, "--manager-namespace", "shop?"];
        let error = Cli::try_parse_from(line).unwrap_err().to_string();

        assert!(error.contains("shop?"), "{command}: {error}");
    }
}

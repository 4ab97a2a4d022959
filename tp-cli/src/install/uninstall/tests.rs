use clap::Parser as _;
use serde_json::json;

use super::*;
use crate::{
    cli::{Cli, Command},
    install::lab::Lab,
};

impl Lab {
    async fn uninstall(&self, flags: &[&str]) -> Result<(), Fault> {
        let kubeconfig = self.kubeconfig().await;
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
        Found::of(&self.connect().await, "tp-system", true)
            .await
            .unwrap()
    }
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

/// A pod of tp, bound to a node.
fn pod(namespace: &str, component: &str, node: &str) -> Object {
    let mut pod = Object::named("v1", "Pod", Some(namespace), &format!("{component}-0"));
    pod.value["metadata"]["labels"] = json!({"app.kubernetes.io/component": component});
    pod.value["spec"] = json!({"nodeName": node, "containers": []});

    pod
}

#[tokio::test]
async fn an_agent_of_a_node_that_is_not_ready_holds_nobody_up() {
    let cluster = Lab::installed();
    let mut node = Object::named("v1", "Node", None, "down");
    node.value["status"] = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
    cluster.add(&node);
    cluster.add(&pod("tp-agents", "agent", "down"));

    cluster.uninstall(&[]).await.unwrap();

    assert!(cluster.found().await.objects.is_empty());
}

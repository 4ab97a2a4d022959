use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::{
    cli::{Cli, Command},
    fake_api_server::{self, refused},
};

/// Answers of an API server: from path and body to status and object.
type Answer = fn(&str, &str) -> (u16, Value);

/// The checks of a cluster whose API server answers so.
async fn found(answer: Answer) -> Vec<Check> {
    let kubeconfig =
        fake_api_server::kubeconfig(move |asked| answer(&asked.path, &asked.body)).await;
    let file = kubeconfig.path().to_str().unwrap();
    let line = Cli::try_parse_from(["tp", "check", "--kubeconfig", file]).unwrap();
    let Command::Check(args) = line.command else {
        panic!("another command");
    };

    checks(&args).await
}

/// A cluster with tp, for a user who has every right.
fn installed(path: &str, _: &str) -> (u16, Value) {
    let path = path.split('?').next().unwrap_or(path);
    match path {
        "/version" => (
            200,
            json!({
                "major": "1", "minor": "34", "gitVersion": "v1.34.1", "gitCommit": "", "compiler": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "platform": "",
            }),
        ),
        "/api/v1/namespaces/shop" => (200, json!({"metadata": {"name": "shop"}})),
        "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
            (201, json!({"status": {"userInfo": {"username": "alice"}}}))
        }
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            (201, json!({"spec": {}, "status": {"allowed": true}}))
        }
        "/api/v1/namespaces/tp-system/configmaps/tp-manager" => {
            let keys = json!({"version": tp_core::VERSION, "tp-manager-0": "key"});
            (
                200,
                json!({"metadata": {"name": "tp-manager"}, "data": keys}),
            )
        }
        "/api/v1/namespaces/tp-system/pods/tp-manager-0" => {
            let ready = json!([{"type": "Ready", "status": "True"}]);
            (
                200,
                json!({"metadata": {"name": "tp-manager-0"}, "status": {"conditions": ready}}),
            )
        }
        _ => refused(404),
    }
}

fn told(checks: &[Check]) -> Vec<(&str, &str)> {
    let pairs = checks
        .iter()
        .map(|it| (it.name.as_str(), it.state.as_str()));

    pairs.collect()
}

#[tokio::test]
async fn a_cluster_that_can_be_connected_to_has_no_failure() {
    let found = found(installed).await;

    let expected = [
        ("api server", "ok"),
        ("login", "ok"),
        ("rights", "ok"),
        ("rights", "ok"),
        ("traffic manager", "ok"),
    ];
    assert_eq!(told(&found), expected, "{found:?}");
    assert!(
        found[0].message.contains("v1.34.1, round trip"),
        "{found:?}"
    );
    assert_eq!(found[1].message, "known as alice");
    assert!(found[2].message.contains("the namespace shop"), "{found:?}");
    assert!(
        found[4].message.ends_with("ready: tp-manager-0"),
        "{found:?}"
    );
}

#[tokio::test]
async fn rights_and_pods_that_are_missing_are_failures_of_their_own() {
    let found = found(|path, body| match path.split('?').next() {
        Some("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            if body.contains("sessions") =>
        {
            (201, json!({"spec": {}, "status": {"allowed": false}}))
        }
        Some("/api/v1/namespaces/tp-system/pods/tp-manager-0") => refused(404),
        _ => installed(path, body),
    })
    .await;

    let states: Vec<&str> = found.iter().map(|it| it.state.as_str()).collect();
    assert_eq!(states, ["ok", "ok", "failed", "ok", "failed"], "{found:?}");
    assert!(
        found[2]
            .remedy
            .contains("`tp grant alice --namespace shop`"),
        "{found:?}"
    );
    assert!(
        found[4].remedy.contains("kubectl -n tp-system get pods"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_namespace_that_does_not_exist_is_told_to_who_may_ask() {
    let absent: Answer = |path, body| match path.ends_with("/namespaces/shop") {
        true => refused(404),
        false => installed(path, body),
    };
    let denied: Answer = |path, body| match path.ends_with("/namespaces/shop") {
        true => refused(403),
        false => installed(path, body),
    };

    let (absent, denied) = (found(absent).await, found(denied).await);

    assert_eq!(told(&absent)[2], ("namespace", "failed"), "{absent:?}");
    assert!(
        absent[2].message.contains("no namespace shop"),
        "{absent:?}"
    );
    let states: Vec<&str> = absent.iter().map(|it| it.state.as_str()).collect();
    assert_eq!(states, ["ok", "ok", "failed", "ok", "ok"], "{absent:?}");
    assert!(denied.iter().all(|it| it.state == "ok"), "{denied:?}");
}

#[tokio::test]
async fn a_refusal_to_look_at_pods_is_not_called_a_pod_that_is_not_ready() {
    let found = found(|path, body| match path.contains("/pods/") {
        true => refused(403),
        false => installed(path, body),
    })
    .await;

    let last = found.last().unwrap();
    assert_eq!(last.state, "failed", "{found:?}");
    assert!(!last.message.contains("ready"), "{found:?}");
}

/// The key of a crashed replica stays published, and users may not read its pod.
#[tokio::test]
async fn a_pod_that_is_ready_serves_whatever_is_said_of_another() {
    let found = found(|path, body| match path.split('?').next() {
        Some("/api/v1/namespaces/tp-system/configmaps/tp-manager") => {
            let version = tp_core::VERSION;
            let keys = json!({"version": version, "tp-manager-0": "key", "tp-manager-1": "key"});
            let metadata = json!({"name": "tp-manager"});
            (200, json!({"metadata": metadata, "data": keys}))
        }
        Some("/api/v1/namespaces/tp-system/pods/tp-manager-1") => refused(403),
        _ => installed(path, body),
    })
    .await;

    let last = found.last().unwrap();
    assert_eq!(last.state, "ok", "{found:?}");
    assert!(last.message.ends_with("ready: tp-manager-0"), "{found:?}");
}

#[tokio::test]
async fn a_cluster_without_tp_is_told_so_also_to_who_may_read_nothing_there() {
    let absent: [Answer; 2] = [
        |path, body| match path.contains("/configmaps/") {
            true => refused(404),
            false => installed(path, body),
        },
        |path, body| match path.split('?').next() {
            Some("/apis") => (200, json!({"kind": "APIGroupList", "groups": []})),
            _ if path.contains("/configmaps/") => refused(403),
            _ => installed(path, body),
        },
    ];
    for answer in absent {
        let found = found(answer).await;

        let last = found.last().unwrap();
        assert_eq!(last.state, "failed", "{found:?}");
        assert!(last.message.starts_with("tp is not installed"), "{found:?}");
        assert!(last.remedy.contains("tp install"), "{found:?}");
    }
}

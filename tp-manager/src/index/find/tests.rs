use serde_json::json;

use super::*;

#[test]
fn a_service_without_a_selector_selects_nothing() {
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    let mut service = Service::default();
    assert!(!selects(&service, &labels));

    service.spec.get_or_insert_default().selector = Some(labels.clone());
    assert!(selects(&service, &labels));
    assert!(!selects(&service, &Labels::new()));
}

fn deployment(selector: serde_json::Value) -> Found {
    let selector = serde_json::from_value(selector).unwrap();
    let metadata = ObjectMeta {
        name: Some("web".to_owned()),
        ..ObjectMeta::default()
    };

    Found::of(WorkloadKind::Deployment, &metadata, Some(selector), None)
}

#[test]
fn pods_are_listed_by_the_whole_selector() {
    let selectors = [
        (json!({"matchLabels": {"app": "web"}}), Some("app=web")),
        (
            json!({"matchExpressions": [
                {"key": "app", "operator": "In", "values": ["web"]},
                {"key": "canary", "operator": "DoesNotExist"},
            ]}),
            Some("app in (web),!canary"),
        ),
        (
            json!({
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}],
            }),
            Some("app=web,tier notin (back)"),
        ),
        // It has no pods, not all of them.
        (json!({}), None),
    ];

    for (selector, expected) in selectors {
        let params = deployment(selector).pods();
        let labels = params.and_then(|params| params.label_selector);
        assert_eq!(labels.as_deref(), expected);
    }
}

#[test]
fn only_pods_of_the_workload_itself_are_waited_for() {
    let owned = |kind: &str, name: &str| {
        let pod = json!({"metadata": {"name": "p", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true},
        ]}});
        serde_json::from_value::<Pod>(pod).unwrap()
    };
    let web = deployment(json!({}));
    assert!(web.has(&owned("ReplicaSet", "web-5d4")));
    assert!(!web.has(&owned("StatefulSet", "web")));
    assert!(!web.has(&Pod::default()), "a bare pod with its labels");
    let stateful = Found {
        kind: WorkloadKind::StatefulSet,
        ..web
    };
    assert!(stateful.has(&owned("StatefulSet", "web")));
    assert!(!stateful.has(&owned("StatefulSet", "other")));
}

#[test]
fn a_pod_that_is_about_to_end_is_not_waited_for() {
    let pod = |metadata: serde_json::Value| {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        serde_json::from_value::<Pod>(json!({"metadata": metadata, "status": status})).unwrap()
    };

    assert!(is_ready(&pod(json!({"name": "p"}))));
    assert!(!is_ready(&pod(
        json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"})
    )));
    assert!(!is_ready(&Pod::default()));
}

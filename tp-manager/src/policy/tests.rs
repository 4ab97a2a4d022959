use serde_json::{Value, json};

use super::{
    presence::{Version, last_change},
    *,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

#[test]
fn nobody_is_trusted_without_a_policy() {
    assert!(Policy::default().trust(at(0)).is_err());
}

#[test]
fn a_proof_runs_out() {
    let policy = Policy::proven_since(at(0), at(10));

    assert!(policy.trust(at(20)).is_ok());
    assert!(policy.trust(at(1000)).is_err());
}

#[test]
fn a_refusal_right_after_a_change_proves_nothing() {
    let mut policy = Policy::proven_since(at(0), at(100));

    assert!(policy.update(Ok(at(110)), at(111)));

    assert!(policy.trust(at(111)).is_err());
    assert_eq!(policy.settled_at, at(111) + EFFECTIVE_AFTER);
    assert!(!policy.update(Ok(at(110)), at(112)));
}

#[test]
fn an_old_policy_is_in_effect_when_a_replica_starts() {
    let mut policy = Policy::default();

    policy.update(Ok(at(0)), at(1000));

    assert_eq!(policy.settled_at, at(1000));
}

#[test]
fn what_is_as_young_as_the_policy_is_not_covered() {
    let policy = Policy::proven_since(at(100), at(110));

    assert!(!policy.covers(at(99)));
    assert!(!policy.covers(at(102)));
    assert!(policy.covers(at(103)));
}

#[test]
fn a_policy_that_was_edited_counts_from_the_edit() {
    let metadata: ObjectMeta = serde_json::from_value(json!({
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [
            {"manager": "tp", "time": "2026-01-01T00:00:00Z"},
            {"manager": "kubectl-edit", "time": "2026-01-02T00:00:00Z"},
            {"manager": "controller", "time": "2026-01-03T00:00:00Z", "subresource": "status"},
        ],
    }))
    .unwrap();

    let changed = last_change(&metadata).unwrap();

    assert_eq!(changed, "2026-01-02T00:00:00Z".parse().unwrap());
}

#[test]
fn a_policy_that_is_missing_from_a_new_listing_is_gone() {
    let mut presence = ObjectPresence::default();
    presence.update(Ok(ObjectEvent::Present(version("a", 1, 0))));

    presence.update(Ok(ObjectEvent::ListBegins));
    assert_eq!(presence.since(), Ok(at(0)));
    presence.update(Ok(ObjectEvent::ListEnds));

    assert!(presence.since().is_err());
}

/// As `tp install` does when it is called twice.
#[test]
fn applying_the_same_again_is_no_change_and_an_edit_or_another_object_is() {
    let mut presence = ObjectPresence::default();
    presence.update(Ok(ObjectEvent::Present(version("a", 1, 0))));

    presence.update(Ok(ObjectEvent::Present(version("a", 1, 6))));
    assert_eq!(presence.since(), Ok(at(0)));
    presence.update(Ok(ObjectEvent::Present(version("a", 2, 7))));
    assert_eq!(presence.since(), Ok(at(7)));
    presence.update(Ok(ObjectEvent::Present(version("b", 2, 8))));
    assert_eq!(presence.since(), Ok(at(8)));
}

fn version(uid: &str, generation: i64, since: i64) -> Version {
    Version {
        uid: Some(uid.into()),
        generation: Some(generation),
        since: Some(at(since)),
    }
}

#[test]
fn every_forgery_differs_in_one_field() {
    let own = UserInfo {
        username: "system:serviceaccount:tp-system:tp-manager".into(),
        ..UserInfo::default()
    };

    for (field, forged) in forgeries(&own) {
        assert_ne!(forged, own, "{field}");
    }
}

#[test]
fn what_leaves_requests_out_is_told_from_what_the_api_server_fills_in() {
    let binding = |resources: Value| {
        let binding = json!({"spec": {"policyName": "tp-identity", "matchResources": resources}});
        narrowing_of_binding(&serde_json::from_value(binding).unwrap())
    };
    let policy = |spec: Value| {
        narrowing_of_policy(&serde_json::from_value(json!({ "spec": spec })).unwrap())
    };
    let rule = json!({"apiGroups": ["tp.internal"], "apiVersions": ["*"], "operations": ["CREATE"],
                      "resources": ["sessions"]});
    let named = json!({"apiGroups": ["tp.internal"], "resourceNames": ["a"]});
    let shop = json!({"matchLabels": {"kubernetes.io/metadata.name": "shop"}});
    let condition = json!([{"name": "a", "expression": "false"}]);

    assert_eq!(binding(json!(null)), None);
    let filled =
        json!({"namespaceSelector": {}, "objectSelector": {}, "matchPolicy": "Equivalent"});
    assert_eq!(binding(filled), None);
    assert!(binding(json!({ "namespaceSelector": shop })).is_some());
    assert!(binding(json!({ "resourceRules": [rule] })).is_some());
    assert_eq!(
        policy(json!({"matchConstraints": {"resourceRules": [rule]}})),
        None
    );
    for narrowed in [
        json!({"matchConstraints": {"namespaceSelector": shop}}),
        json!({"matchConstraints": {"objectSelector": shop}}),
        json!({"matchConstraints": {"excludeResourceRules": [rule]}}),
        json!({"matchConstraints": {"resourceRules": [named]}}),
        json!({ "matchConditions": condition }),
    ] {
        assert!(policy(narrowed.clone()).is_some(), "{narrowed}");
    }
}

#[test]
fn nobody_is_trusted_under_a_policy_that_leaves_requests_out() {
    let mut presence = ObjectPresence::default();
    presence.update(Ok(ObjectEvent::Present(version("a", 1, 0))));
    let mut policy = Policy::proven_since(at(0), at(100));

    presence.update(Ok(ObjectEvent::Narrowed("namespaceSelector")));
    assert!(policy.update(presence.since(), at(110)));
    let reason = policy.trust(at(111)).unwrap_err();
    assert!(reason.contains("namespaceSelector"), "{reason}");

    presence.update(Ok(ObjectEvent::Present(version("a", 3, 120))));
    assert_eq!(presence.since(), Ok(at(120)));
}

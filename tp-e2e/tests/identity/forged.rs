//! Forged Sessions and honest ones.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tp_e2e::{
    applied::{Subject, right},
    cluster::testbed,
    process::{PATIENCE, eventually},
};

use super::support::{Admitted, Forward, Made, POLICY, create, key, made, ready, session};

#[test]
fn the_api_server_refuses_a_session_that_claims_another_user() {
    ready();
    let own = testbed().whoami("dev", &[]);
    let lie = |field: &str, value: Value| {
        let mut user = own.clone();
        user[field] = value;
        user
    };
    let lies = [
        ("username", lie("username", json!("admin"))),
        ("uid", lie("uid", json!("0815"))),
        (
            "groups",
            lie("groups", json!(["system:authenticated", "system:masters"])),
        ),
        ("groups", lie("groups", json!([]))),
        ("extra", lie("extra", json!({"forged": ["yes"]}))),
    ];

    for (field, user) in lies {
        let refused = create("dev", &[], &session("shop", &user, &key()));

        assert!(!refused.status.success(), "{field}: {refused}");
        let by_policy = format!("ValidatingAdmissionPolicy '{POLICY}'");
        assert!(refused.stderr.contains(&by_policy), "{refused}");
        assert!(
            refused.stderr.contains(&format!("spec.user.{field}")),
            "{refused}"
        );
    }
}

#[test]
fn an_impersonated_user_is_who_they_are_impersonated_to_be() {
    ready();
    let flags = ["--as=dev", "--as-group=developers"];
    let user = testbed().whoami("admin", &flags);
    assert!(user["groups"].to_string().contains("developers"), "{user}");

    let created = create("admin", &flags, &session("shop", &user, &key()));

    assert!(created.status.success(), "{created}");
    drop(Made::of(&created.json()));
}

#[test]
fn a_service_account_makes_sessions_in_its_own_namespace_only() {
    ready();
    let robot = "--as=system:serviceaccount:shop:e2e-robot";
    let flags = [
        robot,
        "--as-group=system:serviceaccounts",
        "--as-group=system:serviceaccounts:shop",
        "--as-group=system:authenticated",
    ];
    for namespace in ["shop", "team-b"] {
        testbed().kubectl_apply(&right("e2e-robot", namespace, Subject::Robot("e2e-robot")));
    }
    let user = testbed().whoami("admin", &flags);

    let home = create("admin", &flags, &session("shop", &user, &key()));
    let away = create("admin", &flags, &session("team-b", &user, &key()));
    for namespace in ["shop", "team-b"] {
        testbed().take_right("e2e-robot", namespace);
    }

    assert!(home.status.success(), "{home}");
    drop(Made::of(&home.json()));
    assert!(!away.status.success(), "{away}");
    assert!(away.stderr.contains("only in its own namespace"), "{away}");
}

#[test]
fn a_session_is_changed_by_nobody_and_deleted_by_its_user() {
    ready();
    let made = made("dev", &key());
    let name = made.session.name.as_str();

    let patch = r#"{"spec":{"user":{"username":"admin"}}}"#;
    let changed = testbed().kubectl_as(
        "admin",
        &[
            "patch",
            "session",
            name,
            "--namespace=shop",
            "--type=merge",
            "--patch",
            patch,
        ],
    );
    assert!(
        changed.stderr.contains("spec cannot be changed"),
        "{changed}"
    );

    testbed().give_right("e2e-limited", "limited", "shop");
    let delete = ["delete", "session", name, "--namespace=shop"];
    let by_other = testbed().kubectl_as("limited", &delete);
    testbed().take_right("e2e-limited", "shop");
    assert!(by_other.stderr.contains("takeover"), "{by_other}");

    testbed().kubectl_as("dev", &delete).expect_success();
}

#[test]
fn users_do_not_list_sessions() {
    ready();

    let listed = testbed().kubectl_as("dev", &["get", "sessions", "--namespace=shop"]);

    assert!(listed.stderr.contains("forbidden"), "{listed}");
}

#[tokio::test]
async fn the_manager_admits_a_session_with_its_key_and_ends_it_with_its_object() {
    let Admitted {
        forward: _forward,
        key: _key,
        made,
        tunnel,
    } = Admitted::new("shop", "dev").await;

    drop(made);

    let closed = timeout(Duration::from_secs(5), tunnel.closed()).await;
    let reason = closed
        .expect("the connection ends within seconds")
        .to_string();
    assert!(reason.contains("does not exist"), "{reason}");
}

#[tokio::test]
async fn the_manager_refuses_what_is_not_the_clients_own() {
    ready();
    let forward = Forward::start();
    let (own, other) = (key(), key());
    let made_first = made("dev", &own);

    // Another user's Session, or an own one with another user's key.
    let foreign = forward.refusal(&made_first.session, &other).await;
    assert!(foreign.contains("key"), "{foreign}");

    // A Session that does not exist.
    let mut invented = made_first.session.clone();
    invented.uid = "00000000-0000-0000-0000-000000000000".into();
    let unknown = forward.refusal(&invented, &own).await;
    assert!(unknown.contains("does not exist"), "{unknown}");

    // A copy of a Session's key.
    let copied = eventually("a later second", PATIENCE, || {
        let copied = made("admin", &own);
        if copied.created > made_first.created {
            Ok(copied)
        } else {
            Err(copied.created.clone())
        }
    });
    let copy = forward.refusal(&copied.session, &own).await;
    assert!(copy.contains("key"), "{copy}");

    // The first Session keeps its key.
    forward.connect(&made_first.session, &own).await.unwrap();
}

//! The policy that proves a Session's user, and the manager's key.

use std::{process::Command, time::Duration};

use serde_json::json;
use tp_e2e::{
    cluster::testbed,
    process::{PATIENCE, eventually, run},
    programs::programs,
};

use super::support::{Forward, Made, POLICY, create, key, made, ready, session};

/// The policy takes effect, and the manager trusts it, some seconds after its creation.
const POLICY_TIMEOUT: Duration = Duration::from_secs(30);

/// Removes the policy; installing again restores it.
struct PolicyAway;

impl PolicyAway {
    fn begin() -> Self {
        testbed().kubectl(&["delete", "validatingadmissionpolicybinding", POLICY]);
        Self
    }
}

impl Drop for PolicyAway {
    fn drop(&mut self) {
        testbed().install_tp_again();
    }
}

#[tokio::test]
async fn while_the_policy_is_away_nobody_is_admitted_and_what_was_made_then_stays_void() {
    ready();
    let honest_key = key();
    let honest = made("dev", &honest_key);
    let away = PolicyAway::begin();
    let forged_key = key();
    let user = json!({"username": "admin", "groups": ["system:masters"]});
    let forged = eventually("the policy to be out of force", POLICY_TIMEOUT, || {
        let created = create("dev", &[], &session("shop", &user, &forged_key));
        if created.status.success() {
            Ok(Made::of(&created.json()))
        } else {
            Err(created.stderr)
        }
    });

    let forward = Forward::start();
    let refused = forward.refusal(&honest.session, &honest_key).await;
    assert!(refused.contains("admission policy"), "{refused}");
    let refused = forward.refusal(&forged.session, &forged_key).await;
    assert!(refused.contains("admission policy"), "{refused}");

    drop(away);
    testbed().manager_ready();
    let refused = forward.refusal(&forged.session, &forged_key).await;
    assert!(
        refused.contains("older than the admission policy"),
        "{refused}"
    );

    let late_key = key();
    let late = made("dev", &late_key);
    forward.connect(&late.session, &late_key).await.unwrap();
}

#[test]
fn a_manager_without_the_policy_is_not_ready_and_says_so() {
    ready();
    let away = PolicyAway::begin();

    eventually("the manager to be unready", POLICY_TIMEOUT, || {
        let pod = testbed().object("tp-system", "pod", "tp-manager-0");
        let conditions = pod["status"]["conditions"].to_string();
        if conditions.contains("ContainersNotReady") {
            Ok(())
        } else {
            Err(conditions)
        }
    });
    drop(away);

    testbed().manager_ready();
}

#[test]
fn programs_of_the_workstation_never_see_the_managers_key() {
    ready();
    let hash = testbed().manager_key();
    assert_eq!(hash.len(), 64, "{hash}");

    let secrets = testbed().kubectl(&["get", "secrets", "--namespace=tp-system", "-o=name"]);
    assert_eq!(secrets.trim(), "");
    let mut command = Command::new(programs().join("tp"));
    command.args(["install", "--image=example.com/tp:1", "--dry-run"]);
    let printed = run(&mut command, PATIENCE).expect_success();
    assert!(!printed.contains("kind: Secret"), "{printed}");
}

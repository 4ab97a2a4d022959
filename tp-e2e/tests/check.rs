//! `tp check`: findings and remedies.

use std::time::{Duration, Instant};

use serde_json::Value;
use tp_e2e::{
    cluster::{Impairment, testbed, text},
    lock::alone,
    process::{Finished, PATIENCE, eventually},
    user::Account,
    workstation::Workstation,
};

/// For a completion, on a machine that is busy with other tests.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(2);

/// The check of this name.
#[track_caller]
fn found(checked: &Finished, name: &str) -> Vec<Value> {
    let checks = checked.json()["checks"].clone();
    let checks = checks.as_array().cloned().unwrap_or_default();
    let found: Vec<Value> = checks.into_iter().filter(|it| it["name"] == name).collect();
    assert!(!found.is_empty(), "{name} is missing in {checked}");

    found
}

#[track_caller]
fn states(checked: &Finished, name: &str) -> Vec<String> {
    found(checked, name)
        .iter()
        .map(|it| text(&it["state"]))
        .collect()
}

#[test]
fn a_user_without_a_connection_learns_what_connecting_would_meet() {
    let workstation = Workstation::new(Account::Member, "dev");

    let checked = workstation.tp(&["check", "--namespace", "shop", "-o", "json"]);

    assert_eq!(checked.code(), 0, "{checked}");
    for name in [
        "kernel",
        "btf",
        "cgroup",
        "tun",
        "root daemon",
        "api server",
        "login",
        "traffic manager",
    ] {
        assert_eq!(states(&checked, name), ["ok"], "{name}: {checked}");
    }
    assert_eq!(states(&checked, "rights"), ["ok", "ok"], "{checked}");
    let login = text(&found(&checked, "login")[0]["message"]);
    assert_eq!(login, "known as dev", "{checked}");
    let server = text(&found(&checked, "api server")[0]["message"]);
    assert!(server.contains("round trip"), "{checked}");
    // The session has ended, and there is no connection.
    workstation.tp(&["status"]).expect_code(3);
    eventually("the end of the session", PATIENCE, || {
        match workstation.session_socket().exists() {
            true => Err("its socket is there".to_owned()),
            false => Ok(()),
        }
    });
}

#[test]
fn a_right_that_is_missing_is_a_failure_with_the_command_that_gives_it() {
    let workstation = Workstation::new(Account::Member, "limited");

    let checked = workstation.tp(&["check", "--namespace", "shop", "-o", "json"]);

    assert_eq!(checked.code(), 1, "{checked}");
    assert_eq!(states(&checked, "rights"), ["failed", "ok"], "{checked}");
    let remedy = text(&found(&checked, "rights")[0]["remedy"]);
    assert!(
        remedy.contains("`tp grant limited --namespace shop`"),
        "{checked}"
    );
}

#[test]
fn without_a_root_daemon_it_is_told_how_one_is_started() {
    let workstation = Workstation::without_root_daemon(Account::Root, "admin");

    let checked = workstation.tp(&["check", "--namespace", "shop"]);

    let said = checked.expect_success();
    let line = said.lines().find(|line| line.contains("root daemon"));
    let line = line.unwrap_or_else(|| panic!("no line of the root daemon in {said}"));
    assert!(line.contains("`tp connect` starts"), "{line}");
}

#[test]
fn while_connected_every_way_by_udp_and_the_steering_are_tried() {
    let _alone = alone();
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);

    let checked = eventually("a way by UDP in use", PATIENCE, || {
        let checked = workstation.tp(&["check", "-o", "json"]);
        let ways = found(&checked, "udp");
        match ways
            .iter()
            .any(|it| text(&it["message"]).contains("in use"))
        {
            true => Ok(checked),
            false => Err(checked.to_string()),
        }
    });
    assert_eq!(checked.code(), 0, "{checked}");
    assert_eq!(states(&checked, "steering"), ["ok"], "{checked}");
    assert_eq!(states(&checked, "traffic manager"), ["ok"], "{checked}");
    let here = workstation.tp(&["check", "--namespace", "shop", "-o", "json"]);
    assert!(!here.stdout.contains("the flags name another"), "{here}");
    let elsewhere = workstation.tp(&["check", "--namespace", "team-b", "-o", "json"]);
    assert_eq!(states(&elsewhere, "connection"), ["warning"], "{elsewhere}");

    let impaired = testbed().impair(Impairment::UdpLost);
    let checked = workstation.tp(&["check", "-o", "json"]);
    drop(impaired);
    for way in found(&checked, "udp") {
        assert_eq!(way["state"], "warning", "{checked}");
        assert!(text(&way["message"]).contains("172.30.0."), "{checked}");
        assert!(text(&way["remedy"]).contains("firewall"), "{checked}");
    }
    // One path less is no failure.
    assert_eq!(checked.code(), 0, "{checked}");
}

#[test]
fn names_are_completed_from_the_kubeconfig_and_from_the_session() {
    let workstation = Workstation::new(Account::Member, "dev");
    let complete = |names: &str| {
        let asked = Instant::now();
        let said = workstation.tp(&["__complete", names]);
        assert!(
            asked.elapsed() < COMPLETION_TIMEOUT,
            "{:?}",
            asked.elapsed()
        );
        assert_eq!(said.stderr, "");
        said.expect_success()
    };
    assert_eq!(complete("namespaces"), "");
    let contexts = complete("contexts");
    assert!(!contexts.is_empty());

    let connected = workstation.connect(&["--namespace", "shop", "-o", "json"]);

    let context = text(&connected.json()["context"]);
    assert!(contexts.lines().any(|it| it == context), "{contexts}");
    assert_eq!(complete("namespaces"), "shop\nteam-b\n");
}

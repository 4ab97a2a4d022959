//! Who holds a port, who takes it over, and what somebody else has ended.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tp_e2e::{
    cluster::{testbed, text},
    process::{eventually, signal},
    user::Account,
    workstation::Workstation,
};

use super::support::{CHANGE, Handler, Target, connected, expect_pod, expect_workstation};

fn administrator() -> Workstation {
    Workstation::connected(Account::Colleague, "admin", "shop", &[])
}

/// Waits until the only intercept is ended; returns why.
#[track_caller]
fn expect_ended(workstation: &Workstation) -> String {
    eventually("the end of the intercept", CHANGE, || {
        let status = workstation.status();
        let intercept = &status["intercepts"][0];
        match intercept["state"] == "ended" {
            true => Ok(text(&intercept["reason"])),
            false => Err(status.to_string()),
        }
    })
}

#[test]
fn who_has_the_verb_takes_a_port_over_and_the_other_is_told() {
    let target = Target::new("e2e-taken", 1);
    let url = target.url();
    let first = connected();
    first
        .tp(&["intercept", "e2e-taken", "--port", "18095:http"])
        .expect_success();
    let second = administrator();
    let _handler = Handler::start(&second, 18096);

    second
        .tp(&[
            "intercept",
            "e2e-taken",
            "--port",
            "18096:http",
            "--take-over",
        ])
        .expect_success();

    expect_workstation(&url);
    let reason = expect_ended(&first);
    assert!(reason.contains("took port 8080 over"), "{reason}");
    first.tp(&["leave", "e2e-taken"]).expect_success();
    expect_workstation(&url);
}

#[test]
fn who_lacks_the_verb_takes_nothing_over_and_is_told_which_it_is() {
    let _target = Target::new("e2e-kept", 1);
    let first = administrator();
    first
        .tp(&["intercept", "e2e-kept", "--port", "18097:http"])
        .expect_success();
    let second = connected();

    let refused = second.tp(&[
        "intercept",
        "e2e-kept",
        "--port",
        "18098:http",
        "--take-over",
    ]);

    refused.assert_refused_in_one_line(77, &["takeover", "intercepts.tp.internal", "shop"]);
    assert_eq!(first.status()["intercepts"][0]["state"], "active");
}

#[test]
fn what_an_administrator_deletes_is_ended_and_the_pod_serves_again() {
    let target = Target::new("e2e-deleted", 1);
    let url = target.url();
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18099);
    workstation
        .tp(&["intercept", "e2e-deleted", "--port", "18099:http"])
        .expect_success();
    expect_workstation(&url);
    let status = workstation.status();
    let object = text(&status["intercepts"][0]["object"]);

    testbed().kubectl(&["delete", "intercept", &object, "--namespace=shop"]);

    expect_pod(&url);
    let reason = expect_ended(&workstation);
    assert!(reason.contains("somebody has ended it"), "{reason}");
}

#[test]
fn an_intercept_of_a_killed_session_does_not_block_the_next_one() {
    let target = Target::new("e2e-revenant", 1);
    let url = target.url();
    let mut workstation = connected();
    workstation.may_warn();
    let _handler = Handler::start(&workstation, 18100);
    let words = ["intercept", "e2e-revenant", "--port", "18100:http"];
    workstation.tp(&words).expect_success();
    signal(workstation.session_pid(), Signal::KILL);
    eventually("the end of the session", CHANGE, || {
        let status = workstation.tp(&["status"]);
        match status.code() {
            3 => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    workstation.connect(&["--namespace", "shop"]);

    workstation.tp(&words).expect_success();

    expect_workstation(&url);
}

#[test]
fn an_intercept_whose_session_was_killed_is_disconnected_also_after_the_manager_was_replaced() {
    let target = Target::new("e2e-orphaned", 1);
    let mut workstation = connected();
    workstation.may_warn();
    let _handler = Handler::start(&workstation, 18131);
    let words = ["intercept", "e2e-orphaned", "--port", "18131:http"];
    workstation.tp(&words).expect_success();
    let object = text(&workstation.status()["intercepts"][0]["object"]);

    signal(workstation.session_pid(), Signal::KILL);
    testbed().replace_manager();

    let path = "--output=jsonpath={.status.phase} {.status.since}";
    // The record of a manager that is gone counts for 14 s.
    let gone_after = Duration::from_secs(30);
    eventually("the status to tell it", gone_after, || {
        let get = ["get", "intercept", &object, "--namespace=shop", path];
        match testbed().kubectl(&get) {
            told if told.starts_with("Disconnected 20") => Ok(()),
            other => Err(other),
        }
    });
    expect_pod(&target.url());
    workstation.connect(&["--namespace", "shop"]);
    workstation.tp(&words).expect_success();
    expect_workstation(&target.url());
}

#[test]
fn the_list_tells_who_holds_which_port() {
    let _target = Target::new("e2e-listed", 1);
    let first = connected();
    first
        .tp(&["intercept", "e2e-listed", "--port", "18101:http"])
        .expect_success();
    let second = administrator();

    for (workstation, own) in [(&first, true), (&second, false)] {
        let listed = workstation.tp(&["list", "--output", "json"]);
        let listed: Value = serde_json::from_str(&listed.expect_success()).expect("it is JSON");
        let workloads = listed["workloads"].as_array().expect("a list");
        let workload = workloads.iter().find(|it| it["name"] == "e2e-listed");
        let holder = &workload.expect("it is listed")["intercepts"][0];

        assert_eq!(holder["port"], 8080, "{listed}");
        assert_eq!(holder["user"], "dev", "{listed}");
        assert_eq!(holder["own"], own, "{listed}");
    }
    let text = second.tp(&["list"]).expect_success();
    assert!(text.contains("8080 held by dev"), "{text}");
}

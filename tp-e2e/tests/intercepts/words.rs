//! What is asked wrongly is answered with one sentence, and an exit code by its kind.

use serde_json::Value;
use tp_e2e::{process::eventually, user::Account, workstation::Workstation};

use super::support::{CHANGE, FROM_WORKSTATION, Handler, Target, connected};

#[test]
fn what_cannot_be_intercepted_is_refused_in_one_sentence() {
    let _target = Target::new("e2e-words", 1);
    let workstation = connected();

    for (words, code, expected) in [
        (
            &["no-such", "--port", "8080"][..],
            2,
            &["no-such", "shop"][..],
        ),
        (
            &["e2e-words", "--port", "8080:no-such"],
            2,
            &["no-such", "http"],
        ),
        (&["e2e-words", "--port", "8080"], 2, &["8080", "7000"]),
        (
            &["e2e-words", "--port", "1:http", "--container", "no-such"],
            2,
            &["no-such"],
        ),
        (
            &["e2e-words", "--port", "1:http", "-n", "kube-system"],
            77,
            &["tp grant dev"],
        ),
    ] {
        let refused = workstation.tp(&[&["intercept"], words].concat());

        refused.assert_refused_in_one_line(code, expected);
    }
}

#[test]
fn who_may_not_intercept_is_told_the_command_that_grants_it() {
    let _target = Target::new("e2e-right", 1);
    let workstation = Workstation::connected(Account::Member, "limited", "team-b", &[]);

    let refused = workstation.tp(&["intercept", "echo", "--port", "8080:8080"]);

    refused.assert_refused_in_one_line(77, &["tp grant limited --namespace team-b --intercept"]);
}

#[test]
fn the_second_on_a_port_is_told_who_holds_it() {
    let _target = Target::new("e2e-held", 1);
    let first = connected();
    first
        .tp(&["intercept", "e2e-held", "--port", "18090:http"])
        .expect_success();
    let second = Workstation::connected(Account::Colleague, "admin", "shop", &[]);

    let refused = second.tp(&["intercept", "e2e-held", "--port", "18091:http"]);

    refused.assert_refused_in_one_line(1, &["dev", "since"]);
}

#[test]
fn the_same_name_twice_is_refused() {
    let _target = Target::new("e2e-twice", 1);
    let workstation = connected();
    let words = ["intercept", "e2e-twice", "--port", "18092:http"];
    workstation.tp(&words).expect_success();

    workstation
        .tp(&words)
        .assert_refused_in_one_line(2, &["e2e-twice", "tp leave e2e-twice"]);
    workstation
        .tp(&["leave", "another"])
        .assert_refused_in_one_line(2, &["another", "e2e-twice"]);
}

#[test]
fn who_is_not_connected_is_connected_first_and_told_what_tp_connect_tells() {
    let _target = Target::new("e2e-first", 1);
    let workstation = Workstation::new(Account::Member, "dev");
    let made = |name: &str, port: &str| {
        let words = ["intercept", "e2e-first", "--name", name, "--port", port];
        let made = workstation.tp(&[&words[..], &["-n", "shop", "--output", "json"]].concat());
        let said = made.stderr.clone();
        let printed: Value = serde_json::from_str(&made.expect_success()).expect("it is JSON");
        (printed, said)
    };

    let (first, said) = made("one", "18093:http");
    let (second, _) = made("two", "18094:echo");

    let connected = &first["connected"];
    assert_eq!(connected["namespace"], "shop", "{first}");
    for notice in connected["notices"].as_array().expect("a list") {
        let notice = notice.as_str().expect("a sentence");
        assert!(said.contains(&format!("note: {notice}")), "{said}");
    }
    assert!(second["connected"].is_null(), "{second}");
    let again = workstation.connect(&["--namespace", "shop", "--output", "json"]);
    let again: Value = serde_json::from_str(&again.expect_success()).expect("it is JSON");
    assert_eq!(again["notices"], connected["notices"]);
}

#[test]
fn the_bare_name_of_an_intercepted_service_of_another_namespace_resolves() {
    let _target = Target::new("e2e-lent", 1);
    let workstation = Workstation::connected(Account::Member, "dev", "team-b", &[]);
    let _handler = Handler::start(&workstation, 18110);
    let resolves = || {
        let found = workstation.run(&["getent", "ahostsv4", "e2e-lent"]);
        found.status.success()
    };
    assert!(!resolves());
    workstation
        .tp(&[
            "intercept",
            "e2e-lent",
            "-n",
            "shop",
            "--port",
            "18110:http",
        ])
        .expect_success();

    let answer = workstation.run(&["curl", "-sS", "--max-time", "5", "http://e2e-lent/"]);

    assert_eq!(answer.expect_success(), FROM_WORKSTATION);
    workstation.tp(&["leave", "e2e-lent"]).expect_success();
    eventually("the end of the name", CHANGE, || match resolves() {
        true => Err("it resolves still".to_owned()),
        false => Ok(()),
    });
}

//! What is asked wrongly is answered with one sentence, and an exit code by its kind.

use tp_e2e::{user::Account, workstation::Workstation};

use super::support::{Target, connected};

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

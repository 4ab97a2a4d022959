//! However a session or the root daemon ends, the machine is restored.

use std::{path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::json;
use tp_e2e::{datapath::MEMBER, private::PrivateNamespace, process::eventually};

use crate::{WEB, WEB_ADDRESS, machine};

#[test]
fn closing_restores_the_machine_and_ends_held_connections() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();
    assert!(machine.snapshot().has_programs());

    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");

    // The session resets its flows before the root daemon aborts the rest.
    assert_eq!(app.object()["errno"], "ECONNRESET");
    drop(session);
    machine.assert_as(&before);
}

#[test]
fn a_killed_session_leaves_nothing_behind() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();

    session.kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
}

#[test]
fn a_killed_root_daemon_leaves_nothing_behind() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();
    session.say("wait");

    machine.daemon_mut().kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
    machine.start_daemon(&["--group", &MEMBER.to_string()]);
    let _next = machine.session();
}

#[test]
fn nothing_is_left_when_both_are_killed() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();

    session.signal(Signal::STOP);
    machine.daemon_mut().kill();
    session.kill();

    machine.assert_as(&before);
    assert!(app.object()["errno"].is_string());
}

#[test]
fn a_part_of_a_session_that_dies_is_told_and_takes_no_name_down() {
    let machine = machine();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();
    type Death = fn(&PrivateNamespace);
    let deaths: [(&str, Death); 3] = [
        ("the relay of the session", PrivateNamespace::delete_tun),
        ("the relay of the session", PrivateNamespace::abort_listener),
        (
            "the DNS service of the session",
            PrivateNamespace::abort_udp,
        ),
    ];
    for (part, die) in deaths {
        let mut session = machine.session();
        let ask = || machine.app(MEMBER, &["dns", "127.0.0.53:53", WEB, "timeout=200"]);
        assert_eq!(ask()["addresses"][0], WEB_ADDRESS);

        die(&PrivateNamespace::of(session.pid()));

        let lost = session.object();
        let reason = lost["reason"].as_str().unwrap();
        assert!(reason.starts_with(part), "{lost}");
        // This session goes on without it; the hooks must not.
        eventually("the machine's own server", Duration::from_secs(4), || {
            let seen = ask();
            (seen["addresses"][0] == "192.0.2.53")
                .then_some(())
                .ok_or_else(|| seen.to_string())
        });
    }
}

#[test]
fn a_root_daemon_that_is_stopped_ends_its_sessions_first() {
    let mut machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    session.say("wait");

    machine.daemon_mut().signal(Signal::TERM);

    assert!(machine.daemon_mut().wait());
    assert!(session.wait());
    machine.assert_as(&before);
    assert!(!Path::new(&machine.socket()).exists());
}

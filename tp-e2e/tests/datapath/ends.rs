//! However a session or the root daemon ends, the machine is as before.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;
use tp_e2e::datapath::MEMBER;

use crate::machine;

#[test]
fn closing_restores_the_machine_and_ends_held_connections() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let mut app = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    app.object();
    assert!(machine.snapshot().has_programs());

    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");

    assert_eq!(app.object()["errno"], "ECONNABORTED");
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

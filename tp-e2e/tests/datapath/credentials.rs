//! Programs with more privileges than the user who started them are not steered, in whatever form;
//! all others are.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;
use tp_e2e::datapath::{MEMBER, Machine, NAME_SERVERS, Process, STEER};

use crate::machine;

const TARGET: &str = "10.96.1.2:80";

#[test]
fn a_session_in_a_user_namespace_gains_no_sight_of_privileged_programs() {
    let machine = machine();
    let socket = machine.socket();
    let isolated = ["unshare", "--user", "--map-root-user", "--"];
    let words = [
        "session",
        &socket,
        "/proc/self/ns/net",
        r#""user""#,
        STEER,
        NAME_SERVERS,
    ];
    let mut session = start_isolated(&machine, &isolated, &words);
    let ready = session.object();
    assert_eq!(ready["event"], "ready", "{ready}");
    session.greeting = ready;

    let capable = ["setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"];
    let uid = MEMBER.to_string();
    let user = ["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"];
    let program = machine.dir().join("datapath").display().to_string();
    let app = [&program, "app", "connect", TARGET];
    let words = [&capable[..], &user, &app].concat();
    let privileged = Process::start(&mut machine.command(&words)).object();
    let plain = machine.app(MEMBER, &["connect", TARGET]);

    assert_eq!(privileged["errno"], "EHOSTUNREACH");
    assert_eq!(plain["greeting"], TARGET);
    assert_eq!(session.counter("privileged"), 1);
}

#[test]
fn a_program_that_is_root_in_a_user_namespace_of_its_user_is_steered() {
    let machine = machine();
    let mut session = machine.session();
    let isolated = ["unshare", "--user", "--map-root-user", "--"];

    let seen = start_isolated(&machine, &isolated, &["app", "connect", TARGET]).object();

    assert_eq!(seen["greeting"], TARGET);
    assert_eq!(session.counter("privileged"), 0);
}

#[test]
fn a_program_with_capabilities_in_a_user_namespace_of_somebody_else_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    // Root's namespace, in which the user is root.
    let seen = machine.app(0, &["in-roots-user-namespace", "65534", "connect", TARGET]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("privileged"), 1);
}

#[test]
fn a_set_group_id_program_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = with_mode(&machine, 0o2755, &["connect", TARGET]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("privileged"), 1);
}

#[test]
fn a_program_that_can_take_its_privilege_back_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    for mode in [0o4755, 0o2755] {
        let seen = with_mode(&machine, mode, &["dropped", "connect", TARGET]);
        assert_eq!(seen["errno"], "EHOSTUNREACH", "mode {mode:o}");
    }

    assert_eq!(session.counter("privileged"), 2);
}

#[test]
fn a_socket_that_is_older_than_its_programs_user_is_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.app(0, &["before-setuid", &MEMBER.to_string(), TARGET]);

    assert_eq!(seen["greeting"], TARGET, "{seen}");
    assert_eq!(session.counter("steered"), 1);
}

/// Starts the helper as the member, inside another program.
fn start_isolated(machine: &Machine, isolated: &[&str], words: &[&str]) -> Process {
    let program = machine.dir().join("datapath").display().to_string();
    let words = [isolated, &[&program], words].concat();

    Process::start(&mut machine.command_of(MEMBER, &words))
}

/// The report of a member's application whose program is root's and has this mode.
fn with_mode(machine: &Machine, mode: u32, words: &[&str]) -> Value {
    let program = machine.dir().join(format!("datapath-{mode:o}"));
    fs::copy(machine.dir().join("datapath"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
    let program = program.display().to_string();
    let words = [&[&program, "app"], words].concat();

    Process::start(&mut machine.command_of(MEMBER, &words)).object()
}

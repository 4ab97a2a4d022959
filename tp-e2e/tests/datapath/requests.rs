//! The root daemon's requests, and the users it serves.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::json;
use tp_e2e::datapath::{MEMBER, Machine, NAME_SERVERS, OUTSIDER, Process, STEER};

use crate::{Cgroup, HELPER, machine};

#[test]
fn a_user_outside_the_group_is_refused() {
    let machine = machine();
    let at_the_socket = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();
    fs::set_permissions(machine.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let by_the_daemon = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();

    assert_eq!(at_the_socket["event"], "no_connection");
    assert_eq!(by_the_daemon["reply"]["kind"], "permission");
}

#[test]
fn a_cgroup_of_somebody_else_is_no_scope() {
    let machine = machine();
    let cgroup = Cgroup::new(0);

    for (path, kind) in [
        (cgroup.path(), "permission"),
        ("/tmp", "invalid"),
        ("/nowhere", "invalid"),
    ] {
        let scope = json!({"cgroup": {"path": path}}).to_string();
        let refused = machine
            .try_session(MEMBER, "/proc/self/ns/net", &scope, STEER)
            .object();
        assert_eq!(refused["reply"]["kind"], kind, "{path}: {refused}");
    }
}

#[test]
fn only_the_sessions_own_network_namespace_is_taken() {
    let machine = machine();
    let foreign = format!("/run/netns/{}", machine.neighbour());

    for (netns, kind) in [
        (foreign.as_str(), "permission"),
        ("/dev/null", "invalid"),
        ("/proc/self/ns/mnt", "invalid"),
        ("", "invalid"),
    ] {
        let refused = machine
            .try_session(MEMBER, netns, r#""user""#, STEER)
            .object();
        assert_eq!(refused["reply"]["kind"], kind, "{netns}: {refused}");
    }
}

#[test]
fn a_network_namespace_with_other_users_is_refused() {
    let machine = machine();
    let socket = machine.socket();
    let servers = NAME_SERVERS;
    let words = [
        "session",
        &socket,
        "/proc/self/ns/net",
        r#""user""#,
        STEER,
        servers,
    ];
    let mut command = machine.command(&["unshare", "--user", "--map-root-user", "--net", "--"]);
    command.args(machine.helper_words(0, &words));

    let refused = Process::start(&mut command).object();

    assert_eq!(refused["reply"]["kind"], "unsupported", "{refused}");
}

#[test]
fn senseless_requests_are_refused_and_the_session_goes_on() {
    let machine = machine();
    let mut session = machine.session();
    let too_many: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}:53")).collect();

    for request in [
        json!({"request": "open", "scope": "user"}),
        json!({"request": "dance"}),
        json!({"request": "steer", "include": ["10.0.0.0/99"], "exclude": []}),
        json!({"request": "name_servers", "servers": too_many}),
    ] {
        let reply = session.ask(&request);
        assert_eq!(reply["reply"], "refused", "{request}");
        assert_eq!(reply["kind"], "invalid", "{request}: {reply}");
    }
    assert_eq!(
        machine.app(MEMBER, &["connect", "10.96.1.2:80"])["errno"],
        json!(null)
    );
}

#[test]
fn sessions_of_one_user_are_bounded() {
    let machine = machine();
    let sessions: Vec<_> = (0..8).map(|_| machine.session()).collect();

    let refused = machine
        .try_session(MEMBER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();

    assert_eq!(refused["reply"]["kind"], "unsupported", "{refused}");
    let message = refused["reply"]["message"].to_string();
    assert!(message.contains("8 sessions already"), "{message}");
    drop(sessions);
}

#[test]
fn a_second_root_daemon_does_not_take_the_socket() {
    let machine = machine();

    let output = machine.daemon_command(&[]).output().unwrap();

    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("another root daemon"), "{stderr}");
}

#[test]
fn a_root_daemon_of_sudo_serves_one_user_and_ends_with_the_last_session() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    let uid = MEMBER.to_string();
    machine.start_daemon_with(&["--sudo"], &[("SUDO_UID", &uid)]);
    fs::set_permissions(machine.socket(), fs::Permissions::from_mode(0o666)).unwrap();

    let refused = machine
        .try_session(OUTSIDER, "/proc/self/ns/net", r#""user""#, STEER)
        .object();
    let mut session = machine.session();
    assert_eq!(refused["reply"]["kind"], "permission");
    session.kill();

    assert!(machine.daemon_mut().wait());
}

#[test]
fn a_binary_that_others_can_replace_does_not_run_under_sudo() {
    let machine = Machine::without_daemon(Path::new(HELPER));
    fs::set_permissions(machine.dir(), fs::Permissions::from_mode(0o777)).unwrap();

    let output = machine
        .daemon_command(&["--sudo"])
        .env("SUDO_UID", MEMBER.to_string())
        .output()
        .unwrap();

    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("must belong to root"), "{stderr}");
}

#[test]
fn the_root_daemon_needs_root() {
    let machine = Machine::without_daemon(Path::new(HELPER));
    let daemon = machine.dir().join("tp-daemon").display().to_string();

    let output = machine
        .command(&[
            "setpriv",
            "--reuid",
            "1",
            "--clear-groups",
            "--",
            &daemon,
            "root",
        ])
        .output()
        .unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs root"));
}

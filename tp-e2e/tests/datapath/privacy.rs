//! Users who are not steered and cannot use the aliases.

use std::path::Path;

use tp_e2e::datapath::{Bridge, MEMBER, Machine, Network, OUTSIDER, Process, STEER};

use crate::{Cgroup, HELPER, machine};

/// The first alias, with the ports 80 and 53.
fn alias(session: &Process) -> (String, String) {
    let alias = session.alias(0);

    (format!("{alias}:80"), format!("{alias}:53"))
}

#[test]
fn another_user_is_not_steered_and_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    let (tcp_alias, udp_alias) = alias(&session);
    for uid in [OUTSIDER, 0] {
        let steered = machine.app(uid, &["connect", "10.96.1.2:80"]);
        let tcp = machine.app(uid, &["connect", &tcp_alias, "timeout=400"]);
        let udp = machine.app(uid, &["udp", &udp_alias, "timeout=300"]);

        assert_eq!(steered["errno"], "EHOSTUNREACH", "uid {uid}");
        assert_eq!(tcp["errno"], "ETIMEDOUT", "uid {uid}");
        assert_eq!(udp["errno"], "EAGAIN", "uid {uid}");
    }
    assert_eq!(session.counter("other_user"), 2);
    assert!(session.counter("foreign_socket") >= 4);
}

#[test]
fn a_set_user_id_program_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.setuid_app(&["connect", "10.96.1.2:80"]);
    let name = machine.setuid_app(&["udp", "127.0.0.53:53", "timeout=300"]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert!(name["errno"].is_string(), "{name}");
    assert_eq!(session.counter("privileged"), 2);
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn a_neighbour_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    let (tcp_alias, udp_alias) = alias(&session);
    let tcp = machine.neighbours_app(MEMBER, &["connect", &tcp_alias, "timeout=400"]);
    let udp = machine.neighbours_app(MEMBER, &["udp", &udp_alias, "timeout=300"]);

    assert_eq!(tcp["errno"], "ETIMEDOUT");
    assert_eq!(udp["errno"], "EAGAIN");
    assert!(session.counter("forwarded") >= 2);
}

#[test]
fn another_network_namespace_is_not_steered() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.neighbours_app(MEMBER, &["connect", "10.96.1.2:80", "timeout=300"]);

    assert!(seen["errno"].is_string(), "{seen}");
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn a_container_is_not_steered_and_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    let mut held = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    assert_eq!(held.object()["greeting"], "10.96.1.2:80");
    let steered = session.counter("steered");
    let bridge = Bridge::new(&machine);

    // A user id is the same inside and outside of a container.
    for uid in [MEMBER, OUTSIDER, 0] {
        assert_is_left_out(&machine, &session, Network::Bridge(&bridge), uid);
    }

    assert!(session.counter("forwarded") >= 6);
    assert_eq!(session.counter("steered"), steered);
}

#[test]
fn a_container_of_another_user_on_the_hosts_network_cannot_use_the_aliases() {
    let machine = machine();
    let mut session = machine.session();
    let mut held = machine.start_app(MEMBER, &["hold", "10.96.1.2:80"]);
    assert_eq!(held.object()["greeting"], "10.96.1.2:80");
    let steered = session.counter("steered");

    for uid in [OUTSIDER, 0] {
        assert_is_left_out(&machine, &session, Network::Host, uid);
    }

    assert!(session.counter("foreign_socket") >= 4);
    // Its connect and its query to the name server.
    assert_eq!(session.counter("other_user"), 4);
    assert_eq!(session.counter("steered"), steered);
}

/// Checks that a container is not steered, by address or by name, and cannot use an alias of the
/// machine.
#[track_caller]
fn assert_is_left_out(machine: &Machine, session: &Process, network: Network<'_>, uid: u32) {
    let see = |words: &[&str]| machine.containers_app(network, uid, words);

    let cluster = see(&["connect", "10.96.1.2:80"]);
    let query = see(&["udp", "172.31.0.53:53", "timeout=300"]);
    let (tcp_alias, udp_alias) = alias(session);
    let tcp = see(&["connect", &tcp_alias, "timeout=400"]);
    let udp = see(&["udp", &udp_alias, "timeout=300"]);

    assert_eq!(cluster["errno"], "EHOSTUNREACH", "uid {uid}");
    assert!(query["errno"].is_string(), "uid {uid}: {query}");
    assert_eq!(tcp["errno"], "ETIMEDOUT", "uid {uid}");
    assert_eq!(udp["errno"], "EAGAIN", "uid {uid}");
}

#[test]
fn a_session_cannot_send_what_it_should_not() {
    let machine = machine();
    let mut session = machine.session();

    session.tell("inject");

    assert_eq!(session.counter("foreign_source"), 1);
    assert_eq!(session.counter("foreign_destination"), 0);
    assert_eq!(session.counter("forbidden_reply"), 3);
}

#[test]
fn two_users_have_a_session_each() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    machine.start_daemon(&["--group", "1"]);
    let mut mine = machine.session_of(0, r#""user""#, STEER);
    let mut theirs = machine.session_of(OUTSIDER, r#""user""#, STEER);

    let of_root = machine.app(0, &["connect", "10.96.1.2:80"]);
    let of_other = machine.app(OUTSIDER, &["connect", "10.96.1.2:80"]);
    let of_nobody = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    assert_eq!(of_root["greeting"], "10.96.1.2:80");
    assert_eq!(of_other["greeting"], "10.96.1.2:80");
    assert_eq!(of_nobody["errno"], "EHOSTUNREACH");
    assert_eq!(mine.counter("steered"), 1);
    assert_eq!(theirs.counter("steered"), 1);
}

#[test]
fn the_system_scope_is_for_root_and_for_everybody() {
    let machine = machine();
    let refused = machine
        .try_session(MEMBER, "/proc/self/ns/net", r#""system""#, STEER)
        .object();
    assert_eq!(refused["reply"]["kind"], "permission");
    let mut session = machine.session_of(0, r#""system""#, STEER);

    for uid in [0, MEMBER, OUTSIDER] {
        let seen = machine.app(uid, &["connect", "10.96.1.2:80"]);
        assert_eq!(seen["greeting"], "10.96.1.2:80", "uid {uid}");
    }
    let tcp_alias = alias(&session).0;
    let neighbour = machine.neighbours_app(0, &["connect", &tcp_alias, "timeout=400"]);
    assert_eq!(neighbour["errno"], "ETIMEDOUT");
    assert!(session.counter("forwarded") >= 1);
}

#[test]
fn a_cgroup_scope_reaches_no_further_than_the_cgroup() {
    let machine = machine();
    let cgroup = Cgroup::new(MEMBER);
    let mut session = machine.session_of(MEMBER, &cgroup.scope(), STEER);

    let outside = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let inside = cgroup.app(&machine, MEMBER, &["connect", "10.96.1.2:80"]);
    let alias = machine.app(MEMBER, &["connect", &alias(&session).0, "timeout=400"]);

    assert_eq!(outside["errno"], "EHOSTUNREACH");
    assert_eq!(inside["greeting"], "10.96.1.2:80");
    assert_eq!(alias["errno"], "ETIMEDOUT");
    assert_eq!(session.counter("other_cgroup"), 1);
    assert!(session.counter("foreign_socket") >= 1);
}

//! Sockets and datagrams bound to an address or an interface: steered, or refused at once, never
//! left to hang.

use std::time::Duration;

use tp_e2e::{
    datapath::{MEMBER, OUTSIDER},
    process::{eventually, scaled},
};

use crate::{
    WEB, WEB_ADDRESS,
    aliases::{with_few_aliases, with_few_aliases_and},
    machine,
};

const TARGET: &str = "10.96.1.2:80";
/// Address of the machine under test.
const OWN: &str = "172.31.0.2";

#[test]
fn a_socket_bound_to_an_own_address_is_steered() {
    let machine = machine();
    let mut session = machine.session();
    let bind = format!("bind={OWN}");
    let name = format!("name={WEB}");

    for flags in [&[&*bind][..], &[&*bind, "mapped"], &[&*bind, "nonblocking"]] {
        let seen = machine.app(MEMBER, &[&["connect", TARGET], flags].concat());
        assert_eq!(seen["greeting"], TARGET, "{flags:?}: {seen}");
        assert_eq!(seen["own"], OWN);
    }
    let refused = machine.app(MEMBER, &["connect", "10.96.1.2:7001", &bind]);
    let unreachable = machine.app(MEMBER, &["connect", "10.96.1.2:7003", &bind]);
    let answered = machine.app(MEMBER, &["udp", "172.31.0.53:53", &name, &bind]);

    assert_eq!(refused["errno"], "ECONNREFUSED");
    assert_eq!(unreachable["errno"], "EHOSTUNREACH");
    assert_eq!(answered["from"], "172.31.0.53:53");
    assert_eq!(answered["addresses"][0], WEB_ADDRESS);
    assert_eq!(session.counter("steered"), 6);
}

#[test]
fn a_socket_bound_to_an_interface_is_refused_at_once() {
    let machine = machine();
    let mut session = machine.session();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();

    let seen = machine.app(MEMBER, &["connect", TARGET, "device=e0"]);

    assert_eq!(seen["errno"], "ENETUNREACH");
    assert!(seen["elapsed_ms"].as_u64().unwrap() < 500, "{seen}");
    assert_eq!(session.counter("bound_device"), 1);
}

#[test]
fn a_query_with_a_source_of_its_own_is_answered() {
    let machine = machine();
    let mut session = machine.session();

    let (name, source) = (format!("name={WEB}"), format!("source={OWN}"));
    let seen = machine.app(MEMBER, &["udp", "127.0.0.53:53", &name, &source]);

    assert_eq!(seen["addresses"][0], WEB_ADDRESS, "{seen}");
    assert_eq!(seen["from"], "127.0.0.53:53");
    assert_eq!(session.counter("steered"), 1);
}

#[test]
fn a_query_that_must_leave_by_an_interface_is_answered_as_without_a_session() {
    let machine = machine();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();
    let loopback = "1";
    let ways = [
        &[&*format!("interface={loopback}")][..],
        &[&*format!("unicast-interface={loopback}")],
        &[&*format!("unicast-interface={loopback}"), "connected"],
        &["source=127.0.0.1"],
    ]
    .map(|flags| {
        flags
            .iter()
            .map(|flag| (*flag).to_owned())
            .collect::<Vec<_>>()
    });
    let mut session = machine.session();

    for flags in ways {
        let mut words = vec!["udp", "127.0.0.53:53"];
        words.extend(flags.iter().map(String::as_str));
        let seen = machine.app(MEMBER, &words);
        assert_eq!(seen["answer"], "ping|own", "{flags:?}: {seen}");
        assert_eq!(seen["from"], "127.0.0.53:53");
    }
    assert_eq!(session.counter("bound_device"), 3);
    assert_eq!(session.counter("bound_address"), 1);
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn a_new_name_server_passes_while_the_alias_table_is_full() {
    let machine = with_few_aliases();
    let mut session = machine.session();
    let mut server = machine.start_app(0, &["serve", "127.0.0.54:53"]);
    server.object();
    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "300"]);
    assert!(seen["errors"]["EPERM"].as_u64() > Some(0), "{seen}");
    let servers = serde_json::json!({"request": "name_servers", "servers": ["127.0.0.54:53"]});
    assert_eq!(session.ask(&servers)["reply"], "done");

    let seen = machine.app(MEMBER, &["udp", "127.0.0.54:53"]);

    assert_eq!(seen["answer"], "ping|own", "{seen}");
}

#[test]
fn a_multipath_socket_is_steered_and_its_alias_is_freed_with_it() {
    // All aliases must be given out before the first of them comes back.
    let machine = with_few_aliases_and(scaled(Duration::from_millis(1500)));
    let mut session = machine.session();

    let seen = machine.app(MEMBER, &["connect", TARGET, "mptcp"]);
    assert_eq!(seen["greeting"], TARGET);
    assert_eq!(seen["peer"], TARGET);
    let all = machine.app(MEMBER, &["many", "10.100.0.0:80", "255", "mptcp"]);
    assert_eq!(all["greeted"], 255, "{all}");
    assert_eq!(session.counter("aliases"), 256);

    eventually("aliases to be free", Duration::from_secs(20), || {
        let seen = machine.app(MEMBER, &["connect", "10.101.0.1:80"]);
        (seen["greeting"] == "10.101.0.1:80")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
}

#[test]
fn an_alias_is_no_address_to_connect_to() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", TARGET]);

    let alias = format!("{}:80", session.alias(0));
    for uid in [MEMBER, OUTSIDER, 0] {
        for flags in [&["timeout=300"][..], &["timeout=300", "bind=172.31.0.2"]] {
            let seen = machine.app(uid, &[&["connect", alias.as_str()], flags].concat());
            assert_eq!(seen["errno"], "ETIMEDOUT", "uid {uid} {flags:?}");
        }
    }

    assert!(session.counter("foreign_socket") >= 6);
    assert_eq!(session.counter("steered"), 1);
}

//! Port 53 of the machine's own name servers.

use std::time::{Duration, Instant};

use tp_e2e::{datapath::MEMBER, process::eventually};

use crate::machine;

#[test]
fn datagrams_to_a_name_server_are_answered_in_its_name() {
    let machine = machine();
    let mut session = machine.session();

    for server in ["127.0.0.53:53", "172.31.0.53:53"] {
        let unconnected = machine.app(MEMBER, &["udp", server]);
        let connected = machine.app(MEMBER, &["udp", server, "connected"]);

        for seen in [unconnected, connected.clone()] {
            assert_eq!(seen["answer"], format!("{server}|ping"));
            assert_eq!(seen["from"], server);
        }
        assert_eq!(connected["peer"], server);
    }
    let tcp = machine.app(MEMBER, &["connect", "127.0.0.53:53"]);
    assert_eq!(tcp["greeting"], "127.0.0.53:53");
    assert_eq!(session.counter("stale_session"), 0);
}

#[test]
fn other_datagrams_are_left_alone_and_counted() {
    let machine = machine();
    let mut session = machine.session();

    let other_port = machine.app(
        MEMBER,
        &["udp", "127.0.0.53:54", "connected", "timeout=300"],
    );
    let cluster = machine.app(MEMBER, &["udp", "10.96.0.10:53", "timeout=300"]);

    assert_eq!(other_port["errno"], "ECONNREFUSED");
    assert_eq!(cluster["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("udp"), 1);
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn names_of_the_machine_resolve_while_the_session_hangs() {
    let machine = machine();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();
    let mut session = machine.session();
    let ask = || machine.app(MEMBER, &["udp", "127.0.0.53:53", "timeout=200"]);

    assert_eq!(ask()["answer"], "127.0.0.53:53|ping");
    session.tell("freeze");
    let frozen = Instant::now();
    eventually("the machine's own server", Duration::from_secs(4), || {
        let seen = ask();
        (seen["answer"] == "own|ping")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
    assert!(frozen.elapsed() > Duration::from_millis(1500));
    assert!(session.counter("stale_session") > 0);
    session.tell("thaw");
    eventually("the session", Duration::from_secs(1), || {
        let seen = ask();
        (seen["answer"] == "127.0.0.53:53|ping")
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
}

//! An attacking session: its packets reach only sockets that use it, and other users never see an
//! alias's destination.

use std::time::Duration;

use serde_json::{Value, json};
use tp_e2e::{
    datapath::{MEMBER, Machine, Process},
    process::eventually,
};

use crate::machine;

const SPOOFED: &str = "203.0.113.9";
const STEER_SPOOFED: &str = r#"{"include":["203.0.113.0/24"],"exclude":[]}"#;
const SERVERS: &str = r#"["203.0.113.53:53"]"#;
const PORT: &str = "7777";

#[test]
fn a_listener_that_turns_client_reaches_no_server() {
    let (machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);

    let seen = rogue.tell(&format!("listener {alias} {PORT}"));

    assert_eq!(seen["connected"], false);
    assert_hears_only_the_greeting(&machine, &mut victim);
    assert!(rogue.counter("forbidden_reply") > 0);
}

#[test]
fn a_datagram_from_the_private_namespace_reaches_no_server() {
    let (machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);

    let seen = rogue.tell(&format!("pktinfo {alias} {PORT}"));

    assert_eq!(seen["sent"], true);
    dropped(&mut rogue, "unasked", 1);
    assert_hears_only_the_greeting(&machine, &mut victim);
}

#[test]
fn a_session_that_outlives_the_root_daemon_reaches_no_server_either() {
    let (mut machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);

    machine.daemon_mut().kill();

    // It still owns its descriptors, and the link exists as long.
    for attack in ["listener", "pktinfo"] {
        rogue.tell(&format!("{attack} {alias} {PORT}"));
    }
    assert_hears_only_the_greeting(&machine, &mut victim);
}

#[test]
fn a_datagram_out_of_the_tun_reaches_no_server() {
    let (machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);
    let server = name_servers_alias(&machine, &mut rogue);

    // From an unused alias, and from a name server's.
    rogue.tell(&format!("datagram {alias}:53 {PORT}"));
    rogue.tell(&format!("datagram {server}:53 {PORT}"));

    dropped(&mut rogue, "forbidden_reply", 1);
    dropped(&mut rogue, "unasked", 1);
    assert_hears_only_the_greeting(&machine, &mut victim);
}

#[test]
fn a_datagram_to_somebody_elses_query_is_not_heard() {
    let (machine, mut rogue, _victim) = attacked();
    let server = name_servers_alias(&machine, &mut rogue);
    // A resolver of root that waits for an answer of an outside server.
    let mut resolver = machine.start_app(0, &["wait", "0.0.0.0:5353"]);
    assert_eq!(resolver.object()["event"], "waiting");

    rogue.tell(&format!("datagram {server}:53 5353"));
    dropped(&mut rogue, "unasked", 1);
    machine.app(0, &["greet-udp", "127.0.0.1:5353"]);

    assert_eq!(resolver.object()["bytes"], "greeting");
}

#[test]
fn segments_out_of_the_tun_reach_no_server() {
    let (machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);

    // SYN, SYN with ACK, data, FIN with ACK, and a reset.
    for flags in ["02", "12", "18", "11", "04"] {
        rogue.tell(&format!("segment {alias}:80 {PORT} {flags}"));
    }

    dropped(&mut rogue, "forbidden_reply", 3);
    // An alias never opens connections.
    dropped(&mut rogue, "foreign_source", 1);
    // The reset reaches a listener of a program that did not ask.
    dropped(&mut rogue, "unasked", 1);
    assert_hears_only_the_greeting(&machine, &mut victim);
}

#[test]
fn a_refusal_of_what_nobody_sent_reaches_no_server() {
    let (machine, mut rogue, mut victim) = attacked();
    let alias = rogue.alias(0);

    rogue.tell(&format!("unreachable {alias}:53 {PORT}"));

    dropped(&mut rogue, "unasked", 1);
    assert_hears_only_the_greeting(&machine, &mut victim);
}

#[test]
fn this_machine_accepts_no_connection_from_an_alias() {
    let machine = machine();
    let mut session = machine.session();
    machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let host = session.greeting["bundle"]["host_address"].as_str().unwrap();
    let own = format!("{host}:40000");
    let before = session.counter("unexpected_packet");

    let seen = machine.app(
        0,
        &["segment", &own, &format!("{}:80", session.alias(0)), "12"],
    );

    assert_eq!(seen["sent"], true);
    dropped(&mut session, "unexpected_packet", before + 1);
}

#[test]
fn a_steered_socket_in_another_process_still_shows_the_real_address() {
    let machine = machine();
    let _session = machine.session();
    let path = machine.dir().join("passed").display().to_string();

    for (kind, target) in [("tcp", "10.96.1.2:80"), ("udp", "172.31.0.53:53")] {
        let mut taker = machine.start_app(0, &["take", &path]);
        assert_eq!(taker.object()["event"], "serving");
        machine.app(MEMBER, &["give", kind, target, &path]);

        let seen = taker.object();

        assert_eq!(seen["uid"], 0);
        let shown = if kind == "tcp" { "peer" } else { "from" };
        assert_eq!(seen[shown], target);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_is_local_is_not_steered_whatever_a_session_asks_for() {
    let machine = machine();
    let everything = json!({
        "include": ["0.0.0.0/0", "127.0.0.1/32", "169.254.7.7/32", "224.0.0.0/3"],
        "exclude": [],
    });
    let mut session = machine.session_of(MEMBER, r#""user""#, &everything.to_string());
    let mut victim = victim(&machine);

    machine.app(MEMBER, &["greet", &format!("127.0.0.1:{PORT}")]);
    let heard = [victim.object(), victim.object()];
    let link = machine.app(MEMBER, &["connect", "169.254.7.7:80", "timeout=300"]);
    let this = machine.app(MEMBER, &["connect", "0.0.0.0:9", "timeout=300"]);

    for heard in heard {
        assert_eq!(heard["bytes"], "greeting", "{heard}");
    }
    assert!(link["greeting"].is_null(), "{link}");
    assert_eq!(this["errno"], "ECONNREFUSED");
    assert_eq!(session.counter("steered"), 0);
    let seen = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    assert_eq!(seen["greeting"], "10.96.1.2:80");
}

/// A session that lies about an address, beside a server of root.
fn attacked() -> (Machine, Process, Process) {
    let machine = machine();
    let mut rogue = machine.rogue(r#"{"scope":"user"}"#, STEER_SPOOFED, SERVERS);
    // Makes the first alias stand for this address.
    let target = format!("{SPOOFED}:9");
    let seen = machine.app(MEMBER, &["connect", &target, "timeout=300"]);
    assert_eq!(seen["errno"], "ETIMEDOUT");
    assert_eq!(rogue.counter("aliases"), 1);
    let victim = victim(&machine);

    (machine, rogue, victim)
}

fn victim(machine: &Machine) -> Process {
    let mut victim = machine.start_app(0, &["victim", PORT]);
    assert_eq!(victim.object()["event"], "serving");

    victim
}

/// Allocates the name server's alias, by a query without an answer.
fn name_servers_alias(machine: &Machine, rogue: &mut Process) -> String {
    rogue.tell("alive");
    let mut asker = machine.start_app(MEMBER, &["udp", "203.0.113.53:53"]);
    let seen = rogue.tell("answer 1");
    assert_eq!(asker.object()["from"], "203.0.113.53:53");

    seen["alias"].as_str().unwrap().to_owned()
}

/// Checks that nothing of the attacks has arrived before.
#[track_caller]
fn assert_hears_only_the_greeting(machine: &Machine, victim: &mut Process) {
    let target = format!("127.0.0.1:{PORT}");
    assert_eq!(machine.app(0, &["greet", &target])["event"], "greeted");
    let mut heard: Vec<Value> = vec![victim.object(), victim.object()];
    heard.sort_by_key(|heard| heard["heard"].to_string());

    assert_eq!(heard[0]["heard"], "tcp", "{heard:?}");
    assert_eq!(heard[1]["heard"], "udp", "{heard:?}");
    for heard in heard {
        assert_eq!(heard["bytes"], "greeting", "{heard}");
        let from = heard["from"].as_str().unwrap();
        assert!(from.starts_with("127.0.0.1:"), "{heard}");
    }
}

/// Waits until so many packets are counted as dropped for this reason.
#[track_caller]
fn dropped(session: &mut Process, reason: &str, count: u64) {
    eventually("packets to be dropped", Duration::from_secs(2), || {
        let dropped = session.counter(reason);
        (dropped == count)
            .then_some(())
            .ok_or_else(|| format!("{dropped} of {count} for {reason}"))
    });
}

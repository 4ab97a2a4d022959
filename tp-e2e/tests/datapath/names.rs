//! Port 53 of the machine's own name servers.

use std::time::{Duration, Instant};

use serde_json::Value;
use tp_e2e::{datapath::MEMBER, process::eventually};

use crate::{WEB, WEB_ADDRESS, machine};

/// The answer of the machine's own server to every name.
const OWN: &str = "192.0.2.53";

#[test]
fn queries_to_a_name_server_are_answered_in_its_name() {
    let machine = machine();
    let mut session = machine.session();

    for server in ["127.0.0.53:53", "172.31.0.53:53"] {
        for way in ["unconnected", "connected", "mapped", "inet", "unspec"] {
            let way = format!("way={way}");
            let seen = machine.app(MEMBER, &["dns", server, WEB, &way]);

            assert_eq!(seen["addresses"][0], WEB_ADDRESS, "{way}: {seen}");
            assert_eq!(seen["from"], server, "{way}");
            assert_eq!(seen["id_is_right"], true, "{way}");
            if way == "way=connected" {
                assert_eq!(seen["peer"], server, "{way}");
            }
        }
    }
    assert_eq!(session.counter("stale_session"), 0);
}

#[test]
fn queries_by_tcp_are_answered_where_the_server_takes_them() {
    let machine = machine();
    let _session = machine.session();
    let ask = |name: &str| machine.app(MEMBER, &["dns", "127.0.0.53:53", name, "way=tcp"]);

    let refused = ask(WEB);
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();
    let answered = ask(WEB);
    let foreign = ask("www.example.com.");

    assert_eq!(refused["errno"], "ECONNREFUSED", "{refused}");
    assert_eq!(answered["addresses"][0], WEB_ADDRESS, "{answered}");
    assert_eq!(answered["peer"], "127.0.0.53:53");
    assert_eq!(foreign["addresses"][0], OWN, "{foreign}");
}

#[test]
fn what_the_table_does_not_decide_is_asked_in_the_cluster() {
    let machine = machine();
    let _session = machine.session();
    let ask = |name: &str| machine.app(MEMBER, &["dns", "127.0.0.53:53", name]);

    let pod = ask("pod-0.db.shop.svc.cluster.local.");
    let slow = ask("slow.db.shop.svc.cluster.local.");
    let missing = ask("missing.db.shop.svc.cluster.local.");
    let broken = ask("broken.db.shop.svc.cluster.local.");

    assert_eq!(pod["addresses"][0], "10.97.0.9", "{pod}");
    assert_eq!(slow["addresses"][0], "10.97.0.9", "{slow}");
    assert!(slow["elapsed_ms"].as_u64().unwrap() >= 200, "{slow}");
    assert_eq!(missing["code"], "Non-Existent Domain", "{missing}");
    assert_eq!(broken["code"], "Server Failure", "{broken}");
}

#[test]
fn a_query_that_the_cluster_never_answers_holds_up_no_other() {
    let machine = machine();
    let _session = machine.session();
    let silent = "silent.db.shop.svc.cluster.local.";
    let mut waiting = machine.start_app(MEMBER, &["dns", "127.0.0.53:53", silent, "timeout=8000"]);

    let other = machine.app(MEMBER, &["dns", "127.0.0.53:53", WEB]);

    assert_eq!(other["addresses"][0], WEB_ADDRESS);
    let ended = waiting.object();
    assert_eq!(ended["code"], "Server Failure", "{ended}");
    // The other answer comes long before the session gives up on the first.
    let waited = |seen: &Value| seen["elapsed_ms"].as_u64().unwrap();
    assert!(waited(&ended) > 3000, "{ended}");
    assert!(waited(&other) < 1000, "{other}");
}

#[test]
fn what_is_none_of_the_clusters_goes_to_the_server_that_was_asked() {
    let machine = machine();
    let _session = machine.session();
    let mut server = machine.start_app(0, &["serve", "127.0.0.53:53"]);
    server.object();

    let foreign = machine.app(MEMBER, &["dns", "127.0.0.53:53", "www.example.com."]);
    let odd = machine.app(MEMBER, &["udp", "127.0.0.53:53"]);
    let nobody = machine.app(
        MEMBER,
        &["dns", "172.31.0.2:53", "www.example.com.", "way=connected"],
    );

    assert_eq!(foreign["addresses"][0], OWN, "{foreign}");
    assert_eq!(odd["answer"], "ping|own", "{odd}");
    assert!(nobody["errno"].is_string(), "{nobody}");
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
    let ask = || machine.app(MEMBER, &["dns", "127.0.0.53:53", WEB, "timeout=200"]);

    assert_eq!(ask()["addresses"][0], WEB_ADDRESS);
    session.tell("freeze");
    let frozen = Instant::now();
    eventually("the machine's own server", Duration::from_secs(4), || {
        let seen = ask();
        (seen["addresses"][0] == OWN)
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
    assert!(frozen.elapsed() > Duration::from_millis(1500));
    assert!(session.counter("stale_session") > 0);
    session.tell("thaw");
    eventually("the session", Duration::from_secs(1), || {
        let seen = ask();
        (seen["addresses"][0] == WEB_ADDRESS)
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
}

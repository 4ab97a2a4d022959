//! `connect()`: whose is steered where, and how it ends.

use serde_json::json;
use tp_e2e::datapath::MEMBER;

use crate::{WEB, WEB_ADDRESS, machine};

#[test]
fn connect_is_steered_and_the_application_sees_the_real_address() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);

    assert_eq!(seen["greeting"], "10.96.1.2:80");
    assert_eq!(seen["peer"], "10.96.1.2:80");
    assert_eq!(seen["own"], session.greeting["bundle"]["host_address"]);
    assert_eq!(session.counter("steered"), 1);
    assert_eq!(session.counter("aliases"), 1);
}

#[test]
fn a_mapped_address_is_steered_and_reversed() {
    let machine = machine();
    let _session = machine.session();

    let tcp = machine.app(MEMBER, &["connect", "10.96.1.2:80", "mapped"]);
    let dns = machine.app(MEMBER, &["dns", "127.0.0.53:53", WEB, "way=mapped"]);

    assert_eq!(tcp["greeting"], "10.96.1.2:80");
    assert_eq!(tcp["peer"], "[::ffff:10.96.1.2]:80");
    assert_eq!(dns["from"], "127.0.0.53:53");
    assert_eq!(dns["addresses"][0], WEB_ADDRESS);
}

#[test]
fn the_verdict_of_the_far_side_is_the_error_of_connect() {
    let machine = machine();
    let _session = machine.session();

    for (port, errno) in [
        ("7001", "ECONNREFUSED"),
        ("7002", "ECONNREFUSED"),
        ("7003", "EHOSTUNREACH"),
        ("7006", "EHOSTUNREACH"),
        ("7009", "ENETUNREACH"),
        ("7010", "EHOSTUNREACH"),
        ("7011", "EHOSTUNREACH"),
    ] {
        let target = format!("10.96.1.2:{port}");
        let blocking = machine.app(MEMBER, &["connect", &target]);
        let nonblocking = machine.app(MEMBER, &["connect", &target, "nonblocking"]);

        for seen in [blocking, nonblocking] {
            assert_eq!(seen["errno"], errno, "port {port}");
            assert!(
                seen["elapsed_ms"].as_u64().unwrap() < 1000,
                "port {port}: {seen}"
            );
        }
    }
}

#[test]
fn a_silent_far_side_times_out() {
    let machine = machine();
    let _session = machine.session();

    // A far side that never decides, and one whose dial timed out.
    for port in ["7004", "7012"] {
        for flags in [&["retries=1"][..], &["retries=1", "nonblocking"]] {
            let target = format!("10.96.1.2:{port}");
            let seen = machine.app(MEMBER, &[&["connect", &target], flags].concat());

            assert_eq!(seen["errno"], "ETIMEDOUT", "port {port}: {seen}");
            assert_eq!(seen["gave_up"], false, "it is the kernel's: {seen}");
            // The SYN, one more after 1 s, and 2 s for that one.
            let elapsed = seen["elapsed_ms"].as_u64().unwrap();
            assert!((2500..4500).contains(&elapsed), "port {port}: {elapsed} ms");
        }
    }
}

#[test]
fn a_dial_that_outlasts_repeated_syns_is_made_once() {
    let machine = machine();
    let mut session = machine.session();

    let connected = machine.app(MEMBER, &["connect", "10.96.1.2:7007"]);
    let refused = machine.app(MEMBER, &["connect", "10.96.1.2:7008", "nonblocking"]);

    assert_eq!(connected["greeting"], "10.96.1.2:7007");
    assert_eq!(refused["errno"], "ECONNREFUSED");
    for (seen, target) in [(connected, "10.96.1.2:7007"), (refused, "10.96.1.2:7008")] {
        // The kernel repeats its SYN after 1 s and 3 s.
        let elapsed = seen["elapsed_ms"].as_u64().unwrap();
        assert!((3400..5000).contains(&elapsed), "{target}: {elapsed} ms");
        let dials = session.tell(&format!("dials {target}"));
        assert_eq!(dials["dials"], 1, "{target}");
    }
}

#[test]
fn a_transfer_that_the_far_side_cuts_ends_in_a_reset() {
    let machine = machine();
    let _session = machine.session();

    let seen = machine.app(MEMBER, &["drain", "10.96.1.2:7013"]);

    assert_eq!(seen["errno"], "ECONNRESET", "{seen}");
    assert!(seen["received"].as_u64().unwrap() <= 1 << 20);
}

#[test]
fn a_target_that_resets_at_once_is_not_unreachable() {
    let machine = machine();
    let _session = machine.session();

    for _ in 0..20 {
        let seen = machine.app(MEMBER, &["drain", "10.96.1.2:7014"]);

        // A reset before the application proceeds is an error of connect(), as without tp.
        let errno = seen.get("connect").unwrap_or(&seen["errno"]);
        assert_eq!(errno, "ECONNRESET", "{seen}");
    }
}

#[test]
fn without_a_tunnel_the_cluster_is_unreachable_at_once() {
    let machine = machine();
    let mut session = machine.session();
    session.tell("disconnect");

    let tcp = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    let name = machine.app(MEMBER, &["dns", "127.0.0.53:53", WEB]);

    assert_eq!(tcp["errno"], "EHOSTUNREACH");
    assert!(tcp["elapsed_ms"].as_u64().unwrap() < 1000, "{tcp}");
    assert_eq!(name["code"], "Server Failure");
}

#[test]
fn every_way_to_make_a_tcp_connection_is_steered() {
    let machine = machine();
    let mut session = machine.session();

    for (number, way) in ["mptcp", "fastopen", "again", "mapped"].iter().enumerate() {
        let target = format!("10.96.2.{number}:80");
        let seen = machine.app(MEMBER, &["connect", &target, way]);

        assert_eq!(seen["greeting"], target, "{way}: {seen}");
        let peer = seen["peer"].as_str().unwrap().replace(['[', ']'], "");
        assert_eq!(peer.trim_start_matches("::ffff:"), target, "{way}");
        let dials = if *way == "again" { 2 } else { 1 };
        let made = session.tell(&format!("dials {target}"));
        assert_eq!(made["dials"], dials, "{way}");
    }
}

#[test]
fn connect_ends_when_the_dial_ends() {
    let machine = machine();
    let _session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.1.2:7005"]);

    assert_eq!(seen["greeting"], "10.96.1.2:7005");
    let elapsed = seen["elapsed_ms"].as_u64().unwrap();
    assert!((190..1000).contains(&elapsed), "{elapsed} ms");
}

#[test]
fn an_excluded_network_is_left_alone() {
    let machine = machine();
    let mut session = machine.session();

    let seen = machine.app(MEMBER, &["connect", "10.96.9.7:80"]);

    assert_eq!(seen["errno"], "EHOSTUNREACH");
    assert_eq!(session.counter("steered"), 0);
}

#[test]
fn networks_and_name_servers_can_be_changed() {
    let machine = machine();
    let mut session = machine.session();

    let steer = json!({"request": "steer", "include": ["10.97.0.0/16"], "exclude": ["10.97.0.0/16", "10.98.0.0/16"]});
    assert_eq!(session.ask(&steer)["reply"], "done");
    let excluded_on_a_tie = machine.app(MEMBER, &["connect", "10.97.0.1:80"]);
    let steer = json!({
        "request": "steer", "include": ["10.97.0.0/16"], "remove": ["10.96.0.0/12", "10.98.0.0/16"],
    });
    assert_eq!(session.ask(&steer)["reply"], "done");
    let included = machine.app(MEMBER, &["connect", "10.97.0.1:80"]);
    let no_more = machine.app(MEMBER, &["connect", "10.96.0.1:80"]);
    let servers = json!({"request": "name_servers", "servers": ["10.200.0.1:53", "[fd00::1]:53"]});
    assert_eq!(session.ask(&servers)["reply"], "done");
    let new_server = machine.app(MEMBER, &["dns", "10.200.0.1:53", WEB]);

    assert_eq!(excluded_on_a_tie["errno"], "EHOSTUNREACH");
    assert_eq!(included["greeting"], "10.97.0.1:80");
    assert_eq!(no_more["errno"], "EHOSTUNREACH");
    assert_eq!(new_server["from"], "10.200.0.1:53");
    assert_eq!(new_server["addresses"][0], WEB_ADDRESS);
}

#[test]
fn a_socket_bound_to_loopback_is_left_alone_and_counted() {
    let machine = machine();
    let mut session = machine.session();

    let loopback = machine.app(
        MEMBER,
        &["connect", "10.96.1.2:80", "bind=127.0.0.1", "timeout=300"],
    );
    let own = machine.app(
        MEMBER,
        &["udp", "127.0.0.53:53", "bind=127.0.0.1", "timeout=300"],
    );

    assert!(loopback["errno"].is_string(), "{loopback}");
    assert!(own["errno"].is_string(), "{own}");
    assert_eq!(session.counter("bound_address"), 2);
}

#[test]
fn a_socket_that_is_passed_on_still_tells_its_real_peer() {
    let machine = machine();
    let _session = machine.session();
    let program = machine.setuid_helper().display().to_string();

    let seen = machine.app(MEMBER, &["pass", "10.96.1.2:80", &program]);

    assert_eq!(seen["euid"], 0);
    assert_eq!(seen["peer"], "10.96.1.2:80");
}

#[test]
fn a_held_connect_waits_for_no_timer() {
    let machine = machine();
    let _session = machine.session();

    let seen = machine.app(MEMBER, &["bench", "10.96.1.2:80", "3000"]);

    let median = seen["median_us"].as_f64().unwrap();
    println!("median {median} µs, 99th percentile {} µs", seen["p99_us"]);
    // The shortest timers of TCP and of QUIC are 40 ms and 25 ms.
    assert!(median < 10_000.0, "{median} µs");
}

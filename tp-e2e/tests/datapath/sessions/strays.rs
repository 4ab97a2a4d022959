//! No packet of one session gets into another.

use std::time::Duration;

use serde_json::{Value, json};
use tp_e2e::{
    datapath::{Kind, MEMBER, Machine, OUTSIDER, Process},
    process::eventually,
};

use super::{NARROW, SERVER, close, open};
use crate::machine;

const USER: &str = r#""user""#;
const TARGET: &str = "10.96.1.2:80";

/// The workstation's end of a session's link.
fn interface(session: &Process) -> String {
    let hooks = session.greeting["bundle"]["hooks"].as_array().unwrap();

    hooks
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|hook| hook.strip_prefix("tc/egress "))
        .next()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn drops(session: &mut Process) -> u64 {
    let counters = session.ask(&json!({"request": "counters"}));
    let drops = counters["drops"].as_array().unwrap();

    drops.iter().map(|drop| drop[1].as_u64().unwrap()).sum()
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

#[test]
fn a_socket_of_one_session_sends_nothing_into_another_whatever_it_is_bound_to() {
    let machine = machine();
    let _one = open(&machine, 1, MEMBER, USER, NARROW);
    let _of_root = open(&machine, 2, 0, USER, NARROW);
    let mut other = machine.session_like(Kind {
        uid: OUTSIDER,
        number: 3,
        name_servers: r#"["203.0.113.53:53"]"#,
        ..Kind::default()
    });
    let mut second = machine.session_like(Kind {
        number: 4,
        steer: r#"{"include":["10.112.0.0/12"]}"#,
        name_servers: r#"["203.0.113.54:53"]"#,
        ..Kind::default()
    });

    for session in [&mut other, &mut second] {
        let (alias, device) = (format!("{}:53", session.alias(0)), interface(session));
        for (uid, n) in [(MEMBER, 1), (0, 3)] {
            let loose = machine.app(uid, &["stray", SERVER, &alias]);
            let bound = machine.app(uid, &["stray", SERVER, &alias, &device]);
            for seen in [loose, bound] {
                assert_eq!(seen["first"], SERVER, "uid {uid}: {seen}");
            }
            dropped(session, "foreign_socket", n + 1);

            let before = drops(session);
            let seen = machine.app(uid, &["stray-stream", TARGET, &device]);
            assert!(seen["greeting"].as_str().unwrap().ends_with(TARGET));
            assert_eq!(seen["echo"], "", "{seen}");
            eventually("the segment to be dropped", Duration::from_secs(2), || {
                (drops(session) > before)
                    .then_some(())
                    .ok_or_else(|| "nothing".to_owned())
            });
            // Further ones would change the counts below.
            let connect = machine.app(uid, &["connect", TARGET, &format!("device={device}")]);
            assert_eq!(connect["errno"], "ENETUNREACH", "{connect}");
        }
        assert_eq!(session.counter("steered"), 0);
    }
}

#[test]
fn a_socket_that_asked_name_servers_of_two_sessions_hears_from_both_and_from_no_third() {
    let machine = machine();
    let servers = [SERVER, "172.31.0.53:53"];
    let sessions = [1, 2].map(|number| {
        let server = json!([servers[usize::from(number) - 1]]).to_string();
        machine.session_like(Kind {
            number,
            name_servers: &server,
            ..Kind::default()
        })
    });
    let mut third = machine.rogue(
        r#"{"scope":"user"}"#,
        r#"{"include":[]}"#,
        r#"["203.0.113.53:53"]"#,
    );
    third.tell("alive");
    let mut asker = machine.start_app(MEMBER, &["udp", "203.0.113.53:53"]);
    let own = third.tell("answer 1")["alias"].as_str().unwrap().to_owned();
    assert_eq!(asker.object()["from"], "203.0.113.53:53");

    let mut app = machine.start_app(MEMBER, &["several", &servers.join(",")]);
    let asked = app.object();
    let both = servers.map(|server| json!(server).to_string());
    assert_eq!(asked["from"], json!(both), "{asked}");
    let port = asked["port"].to_string();

    third.tell(&format!("datagram {own}:53 {port}"));
    dropped(&mut third, "unasked", 1);
    for (number, session) in sessions.iter().enumerate() {
        let alias = format!("{}:53", session.alias(0));
        third.tell(&format!("datagram {alias} {port}"));
        third.tell(&format!("segment {alias} {port} 04"));
        third.tell(&format!("unreachable {alias} {port}"));
        dropped(&mut third, "foreign_source", 3 * (number as u64 + 1));
        let from_relay = third.tell(&format!("pktinfo {} {port}", session.alias(0)));
        assert_eq!(from_relay["sent"], false, "{from_relay}");
    }
    app.say("go on");
    assert_eq!(app.object()["errno"], "EAGAIN");
}

/// Leaves one range for aliases: every session has the same, one after the other.
fn leave_one_range(machine: &Machine) {
    let mut taken: Vec<String> = [241, 242, 243, 244, 245, 247, 248, 249, 251]
        .map(|first| format!("{first}.0.0.0/8"))
        .into();
    taken.extend(
        [
            "0.0.0/11",
            "34.0.0/15",
            "36.0.0/14",
            "40.0.0/13",
            "48.0.0/12",
            "64.0.0/10",
            "128.0.0/9",
        ]
        .map(|rest| format!("252.{rest}")),
    );
    for network in taken {
        let words = ["ip", "route", "add", &network, "dev", "e0", "table", "2022"];
        assert!(machine.command(&words).status().unwrap().success());
    }
}

#[test]
fn a_socket_of_a_session_that_has_ended_is_a_stranger_to_the_next_at_the_same_place() {
    let machine = machine();
    leave_one_range(&machine);
    let first = open(&machine, 1, MEMBER, USER, NARROW);
    let base = first.greeting["bundle"]["alias_base"].clone();
    let aliases = [first.alias(0), first.alias(1)];
    let mut old = machine.start_app(MEMBER, &["linger", SERVER, TARGET]);
    assert_eq!(old.object()["event"], "held");
    close(first);

    let mut next = machine.session_like(Kind {
        uid: OUTSIDER,
        number: 2,
        name_servers: "[]",
        ..Kind::default()
    });
    assert_eq!(next.greeting["bundle"]["alias_base"], base);
    for target in ["10.97.0.1:53", "10.97.0.2:53"] {
        super::assert_reaches(&machine, OUTSIDER, target, 2);
    }
    let told = old.tell("tell");

    let text = told.to_string();
    assert!(!text.contains("10.97."), "{told}");
    // The answer was there before; whose it is nobody knows any more.
    assert_eq!(told["from"], format!("{}:53", aliases[0]), "{told}");
    let before = next.counter("foreign_socket");
    let sent = old.tell(&format!("{}:53", aliases[0]));
    assert_eq!(sent["heard"]["errno"], "EAGAIN", "{sent}");
    dropped(&mut next, "foreign_socket", before + 1);
}

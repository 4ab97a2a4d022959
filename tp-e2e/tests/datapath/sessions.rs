//! Several sessions at once: of one user, of several, and of root.

use std::time::Duration;

use serde_json::{Value, json};
use tp_e2e::{
    datapath::{Kind, MEMBER, Machine, OUTSIDER, Process},
    process::eventually,
};

use crate::machine;

mod cgroups;
mod datagrams;
mod programs;
mod shares;
mod strays;

/// The address of this name ends with the number of the session that answers.
const WHO: &str = "who.shop.svc.cluster.local.";
const SERVER: &str = "127.0.0.53:53";
const NARROW: &str = r#"{"include":["10.96.0.0/13"],"exclude":["10.96.9.0/24"]}"#;
const WIDE: &str = r#"{"include":["10.96.0.0/13","10.104.0.0/13"]}"#;

fn open(machine: &Machine, number: u8, uid: u32, scope: &str, steer: &str) -> Process {
    machine.session_like(Kind {
        uid,
        number,
        scope,
        steer,
        ..Kind::default()
    })
}

/// Ends a session once its networks are steered to nobody.
#[track_caller]
fn close(mut session: Process) {
    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");
}

/// Fails the test unless the session of this number connects this user to the target.
#[track_caller]
fn assert_reaches(machine: &Machine, uid: u32, target: &str, number: u8) {
    let seen = machine.app(uid, &["connect", target]);

    assert_eq!(seen["greeting"], format!("{number} {target}"), "{seen}");
    assert_eq!(seen["peer"], target, "{seen}");
}

#[track_caller]
fn assert_reaches_nobody(machine: &Machine, uid: u32, target: &str) {
    let seen = machine.app(uid, &["connect", target]);

    assert_eq!(seen["errno"], "EHOSTUNREACH", "uid {uid}: {seen}");
}

/// Fails the test unless the session of this number answers the user's names.
#[track_caller]
fn assert_answers(machine: &Machine, uid: u32, number: u8) {
    let seen = machine.app(uid, &["dns", SERVER, WHO]);

    assert_eq!(seen["addresses"], json!([who(number)]), "{seen}");
    assert_eq!(seen["from"], SERVER, "{seen}");
}

fn who(number: u8) -> String {
    format!("10.96.0.{number}")
}

/// What the session does not get, and of which process.
#[track_caller]
fn overlaps(session: &mut Process) -> Vec<(String, u64)> {
    let reply = session.ask(&json!({"request": "overlaps"}));
    let overlaps = reply["overlaps"].as_array();
    let overlap = |it: &Value| {
        let network = it["network"].as_str().unwrap();
        let network = match it["is_name_server"] == true {
            true => format!("{network} port 53"),
            false => network.to_owned(),
        };
        (network, it["pid"].as_u64().unwrap())
    };

    overlaps
        .unwrap_or_else(|| panic!("{reply}"))
        .iter()
        .map(overlap)
        .collect()
}

#[test]
fn of_one_users_sessions_the_first_opened_has_what_several_steer_and_the_next_when_it_ends() {
    let machine = machine();
    let user = r#""user""#;
    let mut first = open(&machine, 1, MEMBER, user, NARROW);
    let mut second = open(&machine, 2, MEMBER, user, WIDE);

    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 1);
    assert_reaches(&machine, MEMBER, "10.104.1.2:80", 2);
    // The first leaves that alone.
    assert_reaches(&machine, MEMBER, "10.96.9.7:80", 2);
    assert_answers(&machine, MEMBER, 1);
    assert_eq!(overlaps(&mut first), []);
    let of = |session: &Process, networks: &[&str]| -> Vec<(String, u64)> {
        networks
            .iter()
            .map(|network| ((*network).to_owned(), session.pid().into()))
            .collect()
    };
    let servers = ["127.0.0.53/32 port 53", "172.31.0.53/32 port 53"];
    let shared = [&servers[..], &["10.96.0.0/13"]].concat();
    assert_eq!(overlaps(&mut second), of(&first, &shared));

    close(first);
    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 2);
    assert_answers(&machine, MEMBER, 2);
    assert_eq!(overlaps(&mut second), []);

    // It takes the slot of the first, and not its turn.
    let mut third = open(&machine, 3, MEMBER, user, WIDE);
    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 2);
    assert_answers(&machine, MEMBER, 2);
    let all = [&shared[..], &["10.104.0.0/13"]].concat();
    assert_eq!(overlaps(&mut third), of(&second, &all));
    let excluded = json!({"request": "steer", "exclude": ["10.96.1.0/24"]});
    assert_eq!(second.ask(&excluded)["reply"], "done");
    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 3);
    assert_reaches(&machine, MEMBER, "10.96.2.2:80", 2);

    second.kill();
    eventually("the third to answer", Duration::from_secs(1), || {
        let seen = machine.app(MEMBER, &["dns", SERVER, WHO, "timeout=300"]);
        (seen["addresses"] == json!([who(3)]))
            .then_some(())
            .ok_or_else(|| seen.to_string())
    });
    assert_reaches(&machine, MEMBER, "10.96.2.2:80", 3);
}

#[test]
fn users_and_root_with_sessions_of_the_same_networks_reach_their_own_alone() {
    let machine = machine();
    let user = r#""user""#;
    let everybodys = open(&machine, 4, 0, r#""system""#, WIDE);
    let of_member = open(&machine, 1, MEMBER, user, NARROW);
    let _of_outsider = open(&machine, 2, OUTSIDER, user, NARROW);
    let _of_root = open(&machine, 3, 0, user, NARROW);
    let nobodys = 2;

    for (uid, number) in [(MEMBER, 1), (OUTSIDER, 2), (0, 3), (nobodys, 4)] {
        assert_reaches(&machine, uid, "10.96.1.2:80", number);
        assert_answers(&machine, uid, number);
    }
    // What a user's session does not steer is steered by no other.
    for uid in [MEMBER, OUTSIDER, 0] {
        assert_reaches_nobody(&machine, uid, "10.104.1.2:80");
    }
    assert_reaches(&machine, nobodys, "10.104.1.2:80", 4);

    close(of_member);
    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 4);
    assert_reaches(&machine, OUTSIDER, "10.96.1.2:80", 2);

    close(everybodys);
    assert_reaches_nobody(&machine, MEMBER, "10.96.1.2:80");
    assert_reaches(&machine, 0, "10.96.1.2:80", 3);
}

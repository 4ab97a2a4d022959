//! Whom `accept()` and `getpeername()` tell at a local process that a session connects to.

use serde_json::{Value, json};
use tp_e2e::datapath::{MEMBER, Machine, OUTSIDER, Process};

use crate::machine;

const CLIENT: &str = "10.244.2.9:40112";
const CLIENT6: &str = "[fd00:10:244::9]:40112";
const TARGET: &str = "127.0.0.1:7100";

/// A process of this user that listens.
#[track_caller]
fn listener(machine: &Machine, uid: u32, words: &[&str]) -> Process {
    listening(machine.start_app(uid, &[&["accept"], words].concat()))
}

#[track_caller]
fn listening(mut process: Process) -> Process {
    let said = process.object();
    assert_eq!(said["event"], "listening", "{said}");

    process
}

/// Lets the session connect to the target for a client; returns the source of the connection.
#[track_caller]
fn dial(session: &mut Process, target: &str, client: &str) -> String {
    let dialled = session.tell(&format!("dial {target} {client}"));
    assert_eq!(dialled["reply"]["reply"], "done", "{dialled}");

    dialled["source"].as_str().unwrap().to_owned()
}

/// What a listener says of one connection.
fn seen_as(address: &str) -> Value {
    json!({"accepted": address, "peer": address})
}

#[test]
fn a_process_of_the_user_is_shown_the_client() {
    let machine = machine();
    let mut session = machine.session();

    for (target, client, flags) in [
        (TARGET, CLIENT, &[][..]),
        ("127.0.0.1:7101", CLIENT, &["mptcp"]),
        ("[::1]:7102", CLIENT6, &[]),
        ("172.31.0.2:7103", CLIENT, &[]),
    ] {
        let mut listener = listener(&machine, MEMBER, &[&[target], flags].concat());
        dial(&mut session, target, client);

        assert_eq!(listener.object(), seen_as(client), "{target}");
        // As often as it asks.
        assert_eq!(listener.tell("again")["peer"], client, "{target}");
    }
}

#[test]
fn a_socket_of_every_family_is_shown_a_client_of_ipv4() {
    let machine = machine();
    let mut session = machine.session();
    let mut listener = listener(&machine, MEMBER, &["[::]:7120"]);

    dial(&mut session, "127.0.0.1:7120", CLIENT);

    let mapped = CLIENT.replace("10.244.2.9", "[::ffff:10.244.2.9]");
    assert_eq!(listener.object(), seen_as(&mapped));
}

#[test]
fn no_process_of_anybody_else_is_shown_a_client() {
    let machine = machine();
    let mut session = machine.session();
    let setuid = machine.setuid_helper().display().to_string();

    let others = listener(&machine, OUTSIDER, &["127.0.0.1:7110"]);
    let roots = listener(&machine, 0, &["127.0.0.1:7111"]);
    let words = [&setuid, "app", "accept", "127.0.0.1:7112"];
    let privileged = listening(Process::start(&mut machine.command_of(MEMBER, &words)));
    let caps = ["setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"];
    let uid = MEMBER.to_string();
    let user = ["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"];
    let program = machine.dir().join("datapath").display().to_string();
    let words = [&program, "app", "accept", "127.0.0.1:7113"];
    let words = [&caps[..], &user, &words].concat();
    let capable = listening(Process::start(&mut machine.command(&words)));

    for (mut listener, port) in [
        (others, 7110),
        (roots, 7111),
        (privileged, 7112),
        (capable, 7113),
    ] {
        let source = dial(&mut session, &format!("127.0.0.1:{port}"), CLIENT);
        assert_eq!(listener.object(), seen_as(&source), "{port}");
    }
}

/// Accepts as root, and looks as the user.
const HANDED_DOWN: &str = r#"
import json, os, socket, sys
listener = socket.create_server(('127.0.0.1', 7140))
print(json.dumps({'event': 'listening'}), flush=True)
connection, _ = listener.accept()
os.setgroups([])
uid = int(sys.argv[1])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
print(json.dumps({'peer': '%s:%d' % connection.getpeername()}), flush=True)
"#;

#[test]
fn a_socket_of_somebody_else_in_the_users_hands_is_shown_no_client() {
    let machine = machine();
    let mut session = machine.session();
    let uid = MEMBER.to_string();
    let words = ["/usr/bin/python3", "-c", HANDED_DOWN, &uid];
    let mut listener = listening(Process::start(&mut machine.command(&words)));

    let source = dial(&mut session, "127.0.0.1:7140", CLIENT);

    assert_eq!(listener.object()["peer"], source);
}

#[test]
fn no_other_connection_and_no_client_of_the_other_family_is_shown() {
    let machine = machine();
    let mut session = machine.session();
    let mut plain = listener(&machine, MEMBER, &[TARGET]);
    let mut six = listener(&machine, MEMBER, &["[::1]:7121"]);
    dial(&mut session, TARGET, CLIENT);
    assert_eq!(plain.object(), seen_as(CLIENT));

    // Of the session too, but for nobody.
    let source = session.tell(&format!("dial {TARGET}"))["source"].take();
    assert_eq!(plain.object(), seen_as(source.as_str().unwrap()));
    let _knock = machine.start_app(MEMBER, &["knock", "127.0.0.1:7129", TARGET]);
    assert_eq!(plain.object(), seen_as("127.0.0.1:7129"));

    for (target, client) in [(TARGET, CLIENT6), ("[::1]:7121", CLIENT)] {
        let source = dial(&mut session, target, client);
        let listener = if target == TARGET {
            &mut plain
        } else {
            &mut six
        };
        assert_eq!(listener.object(), seen_as(&source), "{client}");
    }
}

#[test]
fn a_client_goes_with_the_socket_of_the_session() {
    let machine = machine();
    let mut session = machine.session();
    let mut listener = listener(&machine, MEMBER, &[TARGET]);
    let source = dial(&mut session, TARGET, CLIENT);
    assert_eq!(listener.object(), seen_as(CLIENT));

    assert_eq!(session.tell("hang-up")["event"], "obeyed");

    // The same four addresses, at once, by the same user and by another.
    for uid in [MEMBER, OUTSIDER] {
        let mut knock = machine.start_app(uid, &["knock", &source, TARGET]);
        assert_eq!(knock.object()["event"], "connected");
        assert_eq!(listener.object(), seen_as(&source), "user {uid}");
        knock.kill();
    }
}

#[test]
fn a_client_goes_with_the_session_however_it_dies() {
    let machine = machine();
    // The programs stay.
    let _other = machine.session();
    let mut session = machine.session();
    let mut first = listener(&machine, MEMBER, &[TARGET]);
    let source = dial(&mut session, TARGET, CLIENT);
    assert_eq!(first.object(), seen_as(CLIENT));

    session.kill();

    let mut knock = machine.start_app(MEMBER, &["knock", &source, TARGET]);
    assert_eq!(knock.object()["event"], "connected");
    assert_eq!(first.object(), seen_as(&source));

    // A data path that is closed, while its connections are still there.
    let mut session = machine.session();
    let target = "127.0.0.1:7130";
    let mut second = listener(&machine, MEMBER, &[target]);
    let source = dial(&mut session, target, CLIENT);
    assert_eq!(second.object(), seen_as(CLIENT));

    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");

    assert_eq!(second.tell("again")["peer"], source);
    // One of them gets its slot.
    let _more: Vec<_> = (0..3).map(|_| machine.session()).collect();
    assert_eq!(second.tell("again")["peer"], source);
    let refused = session.tell(&format!("dial {target} {CLIENT}"));
    assert_eq!(refused["reply"]["kind"], "invalid", "{refused}");
    assert_eq!(
        second.object(),
        seen_as(refused["source"].as_str().unwrap())
    );
}

#[test]
fn a_client_is_registered_in_less_time_than_a_connection_takes() {
    let machine = machine();
    let mut session = machine.session();

    let took = session.tell(&format!("time-clients {CLIENT} 3000"));

    println!("{took}");
    let median = took["median_us"].as_f64().unwrap();
    assert!(median < 1000.0, "{took}");
}

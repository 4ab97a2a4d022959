//! Several sessions of one user: a query passed on by one reaches the server, not another session.

use std::path::Path;

use tp_e2e::datapath::{MEMBER, Machine, Process, STEER};

use crate::{HELPER, machine};

/// The neighbour's address.
const SERVER: &str = "172.31.0.1:53";
const SERVERS: &str = r#"["172.31.0.1:53"]"#;

#[test]
fn a_query_of_a_user_with_two_sessions_reaches_the_server_once() {
    let machine = machine();
    let socket = machine.socket();
    let _first = start_session_at(&machine, &socket);
    let _second = start_session_at(&machine, &socket);

    assert_query_arrives_once(&machine);
}

#[test]
fn a_query_of_a_user_with_sessions_of_two_root_daemons_reaches_the_server_once() {
    let machine = machine();
    let other = machine.dir().join("other.sock").display().to_string();
    let group = MEMBER.to_string();
    let mut command = machine.daemon_command_at(&other, &["--group", &group]);
    let mut daemon = Process::start(&mut command);
    daemon.wait_for_line("Root daemon is ready");
    let _first = start_session_at(&machine, &machine.socket());
    let _second = start_session_at(&machine, &other);

    assert_query_arrives_once(&machine);
}

#[test]
fn a_query_reaches_the_server_once_when_daemon_and_session_live_in_a_pid_namespace() {
    let machine = Machine::without_daemon(Path::new(HELPER));
    let socket = machine.socket();
    let words = machine.helper_words(MEMBER, &session_words(&socket));
    let session = words
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>();
    let session = session.join(" ");
    // The shell stays the namespace's first process, so that all others end with it: the kernel
    // sends no parent-death signal after a change of user.
    let script = format!(
        "\"$0\" root --socket \"$1\" --group {MEMBER} & until [ -S \"$1\" ]; do sleep 0.05; done; \
         {session}; exit $?"
    );
    let daemon = machine.dir().join("tp-daemon").display().to_string();
    let isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let shell = ["sh", "-c", &script, &daemon, &socket];
    let mut session = Process::start(&mut machine.command(&[&isolated[..], &shell].concat()));
    assert_eq!(session.object()["event"], "ready");

    assert_query_arrives_once(&machine);
}

#[track_caller]
fn start_session_at(machine: &Machine, socket: &str) -> Process {
    let words = machine.helper_words(MEMBER, &session_words(socket));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut session = Process::start(&mut machine.command(&words));
    assert_eq!(session.object()["event"], "ready");

    session
}

/// Arguments of a session whose name server is the neighbour.
fn session_words(socket: &str) -> [&str; 6] {
    let own = "/proc/self/ns/net";

    ["session", socket, own, r#""user""#, STEER, SERVERS]
}

#[track_caller]
fn assert_query_arrives_once(machine: &Machine) {
    let mut server = machine.start_neighbours_app(0, &["serve", SERVER]);
    assert_eq!(server.object()["event"], "serving");

    let seen = machine.app(MEMBER, &["udp", SERVER]);
    assert_eq!(seen["answer"], "ping|own", "{seen}");
    assert_eq!(seen["from"], SERVER);

    // Any other pending datagram would arrive before this.
    let marker = machine.app(0, &["udp", SERVER]);
    assert_eq!(marker["answer"], "ping|own", "{marker}");
    let heard = [server.object(), server.object()];
    for heard in heard {
        assert_eq!(heard["heard"], "ping");
    }
    let log = server.log();
    assert_eq!(log.matches("heard").count(), 2, "{log}");
}

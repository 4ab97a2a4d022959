//! Changes at the far end of a connection reach the application.

use std::time::{Duration, Instant};

use tp_e2e::{
    far_host::FarHost,
    process::{Finished, Running},
    user::Account,
    workstation::Workstation,
};

const ADDRESS: &str = "10.77.0.3";
const PORT: &str = "7996";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Accepts connections and holds them.
const SILENT: &str = r#"
import socket, sys
l = socket.socket()
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((sys.argv[1], int(sys.argv[2])))
l.listen()
print("listens", flush=True)
held = []
while True: held.append(l.accept()[0])
"#;

/// Waits on a quiet connection; with three more arguments it asks for probes with these times.
const WAITER: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.settimeout(None)
if len(sys.argv) > 3:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    for option, value in zip(options, sys.argv[3:]):
        s.setsockopt(socket.IPPROTO_TCP, option, int(value))
print("waits", flush=True)
try: print("end", s.recv(1), flush=True)
except OSError as e: print("error", e.errno, flush=True)
"#;

/// Receives the urgent byte inline, and answers with one.
const URGENT_SERVER: &str = r#"
import socket, sys
l = socket.socket()
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((sys.argv[1], int(sys.argv[2])))
l.listen()
print("listens", flush=True)
while True:
    s = l.accept()[0]
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    seen = b""
    while chunk := s.recv(100): seen += chunk
    s.sendall(seen[:3]); s.send(seen[3:4], socket.MSG_OOB); s.sendall(seen[4:])
    s.close()
"#;
const URGENT_CLIENT: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
s.sendall(b"abc"); s.send(b"!", socket.MSG_OOB); s.sendall(b"def")
s.shutdown(socket.SHUT_WR)
seen = b""
while chunk := s.recv(100): seen += chunk
print(seen.decode())
"#;

/// A session that reaches the address through the cluster.
fn connected_to_the_host() -> Workstation {
    let host = format!("{ADDRESS}/32");

    Workstation::connected(Account::Member, "admin", "shop", &["--also-proxy", &host])
}

#[track_caller]
fn start_server(program: &str) -> FarHost {
    let mut beyond = FarHost::start(ADDRESS, &["/usr/bin/python3", "-c", program, ADDRESS, PORT]);
    beyond.server.wait_for("listens", START_TIMEOUT);

    beyond
}

#[track_caller]
fn start_waiter(workstation: &Workstation, times: &[&str]) -> Running {
    let words = ["/usr/bin/python3", "-c", WAITER, ADDRESS, PORT];
    let mut waiter = workstation.start(&[&words, times].concat());
    waiter.wait_for("waits", START_TIMEOUT);

    waiter
}

#[track_caller]
fn assert_fails(finished: &Finished) {
    const ECONNRESET: &str = "error 104";

    assert!(finished.stdout.contains(ECONNRESET), "{finished}");
}

#[test]
fn a_host_that_vanishes_ends_quiet_connections_in_an_error_sooner_where_the_application_asks() {
    let workstation = connected_to_the_host();
    let beyond = start_server(SILENT);
    let asking = start_waiter(&workstation, &["5", "2", "3"]);
    let silent = start_waiter(&workstation, &[]);

    beyond.vanish();
    let vanished = Instant::now();

    let finished = asking.finish(Duration::from_secs(25));
    assert!(vanished.elapsed() < Duration::from_secs(20), "{finished}");
    assert_fails(&finished);
    let finished = silent.finish(Duration::from_secs(70));
    assert_fails(&finished);
}

#[test]
fn urgent_bytes_stay_in_their_place_in_both_directions() {
    let workstation = connected_to_the_host();
    let _beyond = start_server(URGENT_SERVER);

    let seen = workstation.run(&["/usr/bin/python3", "-c", URGENT_CLIENT, ADDRESS, PORT]);

    assert_eq!(seen.expect_success().trim(), "abc!def");
}

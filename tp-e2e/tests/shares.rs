//! One session, one stranger or one hanging server takes nothing from the others.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use tp_e2e::{
    cluster::testbed,
    firewall::{Rule, named, of_process},
    lock::alone,
    process::Running,
    user::Account,
    workstation::Workstation,
};

/// Starts 600 connections to a silent port, then connects to `web.shop`; prints the milliseconds
/// that took, and how many of the others have ended.
const CONNECT_BESIDE_600: &str = r#"
import select, socket, sys, time
silent = [socket.socket() for _ in range(600)]
for s in silent:
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 7999))
time.sleep(2)
begun = time.monotonic()
socket.create_connection(("web.shop", 80), 10)
took = time.monotonic() - begun
print(int(took * 1000), len(select.select([], silent, [], 0)[1]))
"#;

#[test]
fn a_silent_target_takes_nothing_from_the_others() {
    let _alone = alone();
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let silent = testbed().pod_ip("shop", "echo");
    let nodes = ["1", "2"].map(|node| named(&testbed().namespace(node)));
    let port = ["-p", "tcp", "-d", &silent, "--dport", "7999", "-j", "DROP"];
    let _rule = Rule::insert(nodes, ["raw", "PREROUTING"], &port);

    let told = workstation.run(&["/usr/bin/python3", "-c", CONNECT_BESIDE_600, &silent]);

    let told = told.expect_success();
    let (took, ended) = told.trim().split_once(' ').expect("two numbers");
    let took: u64 = took.parse().unwrap();
    assert!(took < 1500, "{took} ms");
    assert_eq!(ended, "0", "as without tp, they wait");
}

/// Connects to the stream path's port repeatedly, and sends nothing: sys.argv[1] connections at
/// once, each for four seconds.
const STRANGER: &str = r#"
import collections, resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held, room = collections.deque(), int(sys.argv[1])
while True:
    held.append(socket.create_connection(("127.0.0.1", 7070), 5))
    if len(held) == room: print("full", flush=True)
    if len(held) > room: held.popleft().close()
    if len(held) >= room: time.sleep(4 / room)
"#;

#[test]
fn a_stranger_takes_no_room_from_those_who_connect() {
    let _alone = alone();
    testbed().install_tp();
    let workstation = Workstation::new(Account::Member, "dev");
    let &[(manager, _)] = testbed().managers().as_slice() else {
        panic!("one manager is expected");
    };
    let mut stranger = Command::new("nsenter");
    stranger.args(of_process(manager));
    stranger.args(["/usr/bin/python3", "-c", STRANGER, "3000"]);
    let mut stranger = Running::start(&mut stranger);
    stranger.wait_for("full", Duration::from_secs(30));

    for _ in 0..12 {
        let begun = Instant::now();
        workstation.connect(&["--namespace", "shop"]);
        let took = begun.elapsed();
        workstation.tp(&["quit"]).expect_success();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    assert!(!stranger.has_ended(), "the stranger was there throughout");
}

/// How long a connection to `web.shop` takes.
fn milliseconds_to_connect(workstation: &Workstation) -> u64 {
    let script = "import socket, time; t = time.monotonic(); \
                  socket.create_connection(('web.shop', 80), 20); \
                  print(int((time.monotonic() - t) * 1000))";
    let told = workstation.run(&["/usr/bin/python3", "-c", script]);

    told.expect_success().trim().parse().expect("a number")
}

#[test]
fn a_hanging_api_server_costs_a_dial_nothing() {
    let _alone = alone();
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    milliseconds_to_connect(&workstation);
    let managers = testbed().managers();
    let places = managers.iter().map(|(pid, _)| of_process(*pid));
    let silent = ["-p", "tcp", "-d", "10.96.0.1", "-j", "DROP"];
    let rule = Rule::insert(places, ["filter", "OUTPUT"], &silent);
    let end = Instant::now() + Duration::from_secs(12);

    // Longer than known rights are fresh, and than a review may take.
    let mut slowest = 0;
    while Instant::now() < end {
        slowest = slowest.max(milliseconds_to_connect(&workstation));
    }
    drop(rule);

    assert!(slowest < 1000, "{slowest} ms");
    testbed().manager_ready();
}

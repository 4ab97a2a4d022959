//! What a call of a process costs, and sessions that are only there.

use std::{
    net::{SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
};

use rustix::{
    net::{AddressFamily, SendFlags, SocketType, connect, sendto, socket},
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};

use crate::{root_client::RootClient, session::say, sys};

/// Calls between two looks at the clock: a few milliseconds, of which some pass undisturbed.
const BATCH: u32 = 2000;

/// For each line `CALL FIRST SECOND BATCHES`, calls by a datagram socket to two addresses by turns.
/// Reports the nanoseconds of a call in the median and in the fastest of the batches.
pub(crate) fn measure() {
    say(&json!({"event": "ready", "batch": BATCH}));
    for line in std::io::stdin().lines() {
        let line = line.expect("input is text");
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, first, second, batches] = words.as_slice() else {
            panic!("CALL FIRST SECOND BATCHES");
        };
        let targets = [first, second].map(|it| it.parse().expect("an address"));
        let batches = batches.parse().expect("a number");
        let call = match *kind {
            "connect" => connect_to,
            "sendto" => send_to,
            _ => panic!("no such call: {kind}"),
        };
        say(&nanos_of(call, targets, batches));
    }
}

fn nanos_of(
    call: impl Fn(&OwnedFd, &SocketAddr),
    targets: [SocketAddrV4; 2],
    batches: usize,
) -> Value {
    let targets = targets.map(SocketAddr::from);
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    let mut batches: Vec<f64> = (0..batches)
        .map(|_| {
            let begin = processor_time_ns();
            for _ in 0..BATCH / 2 {
                call(&socket, &targets[0]);
                call(&socket, &targets[1]);
            }
            (processor_time_ns() - begin) as f64 / f64::from(BATCH)
        })
        .collect();
    batches.sort_by(f64::total_cmp);

    json!({"lowest": batches[0], "median": batches[batches.len() / 2]})
}

fn connect_to(socket: &OwnedFd, target: &SocketAddr) {
    connect(socket, target).expect("there is a route");
}

fn send_to(socket: &OwnedFd, target: &SocketAddr) {
    sendto(socket, b"x", SendFlags::empty(), target).expect("there is a route");
}

/// What this thread has had of the processor, so that others on the machine count little.
fn processor_time_ns() -> i64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);

    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// `SOCKET STEER NAME_SERVERS`: for each line, a number, has that many sessions of this user, which
/// carry nothing.
pub(crate) fn hold_sessions(words: &[&str]) {
    let [socket, steer, name_servers] = words else {
        panic!("sessions SOCKET STEER NAME_SERVERS");
    };
    let mut steer: Value = serde_json::from_str(steer).expect("JSON");
    steer["request"] = "steer".into();
    let servers: Value = serde_json::from_str(name_servers).expect("JSON");
    let servers = json!({"request": "name_servers", "servers": servers});
    let open = || {
        let root = RootClient::connect(socket).expect("the root daemon listens");
        let request = json!({"request": "open", "scope": "user"});
        let (reply, descriptors) = root.ask(&request, Some("/proc/self/ns/net"));
        assert_eq!(reply["reply"], "opened", "{reply}");
        for request in [&steer, &servers] {
            let (reply, _) = root.ask(request, None);
            assert_eq!(reply["reply"], "done", "{reply}");
        }
        (root, descriptors)
    };
    let mut sessions = Vec::new();
    for line in std::io::stdin().lines() {
        let count: usize = line.expect("input is text").parse().expect("a number");
        while sessions.len() < count {
            sessions.push(open());
        }
        for (root, _) in sessions.drain(count..) {
            let (reply, _) = root.ask(&json!({"request": "close"}), None);
            assert_eq!(reply["reply"], "done", "{reply}");
        }
        say(&json!({"sessions": sessions.len()}));
    }
}

/// Makes the kernel measure eBPF programs until the input ends.
pub(crate) fn time_programs() {
    let _measuring = sys::time_programs().expect("root may");
    say(&json!({"event": "ready"}));
    for line in std::io::stdin().lines() {
        line.expect("input is text");
    }
}

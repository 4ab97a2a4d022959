//! One user cannot exhaust the resources of others.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tp_e2e::{
    datapath::{MEMBER, Machine, Process, STEER},
    process::eventually,
};

use crate::{machine, sh};

/// Opens bundles, each on its own connection, and keeps one descriptor of each.
const HOARD: &str = r#"
import array, json, os, socket, sys
def ask(root, request, fds=[]):
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
    root.sendmsg([json.dumps(request).encode()], control)
    data, control, _, _ = root.recvmsg(65536, socket.CMSG_SPACE(20))
    got = array.array('i')
    for _, _, part in control: got.frombytes(part[:len(part) - len(part) % 4])
    return json.loads(data), list(got)
path, which, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kept, netns = [], os.open('/proc/self/ns/net', 0)
for _ in range(rounds):
    root = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root.connect(path)
    reply, fds = ask(root, {'request': 'open', 'scope': 'user'}, [netns])
    if reply['reply'] != 'opened':
        break
    kept.append(fds[which])
    for n, fd in enumerate(fds):
        if n != which: os.close(fd)
    ask(root, {'request': 'close'})
    again, _ = ask(root, {'request': 'open', 'scope': 'user'}, [netns])
    root.close()
print(json.dumps({'kept': len(kept), 'reply': reply, 'again': again}), flush=True)
sys.stdin.read()
"#;

/// Opens silent connections, and reopens them until the input ends.
const IDLE: &str = r#"
import select, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
while True:
    held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
    for it in held:
        it.setblocking(False)
        try: it.connect(path)
        except OSError: pass
    print('{}', flush=True)
    if select.select([sys.stdin], [], [], 1.5)[0]: break
    for it in held: it.close()
"#;

fn python(machine: &Machine, uid: u32, script: &str, words: &[&str]) -> Process {
    let socket = machine.socket();
    let own = ["/usr/bin/python3", "-c", script, &socket];
    Process::start(&mut machine.command_of(uid, &[&own, words].concat()))
}

/// Checks that the member gets a session in time.
#[track_caller]
fn serves_again(machine: &Machine, bound: Duration) {
    eventually("room for a session", bound, || {
        let mut session = machine.try_session(MEMBER, "/proc/self/ns/net", r#""user""#, STEER);
        let said = session.object();
        if said["event"] == "ready" {
            Ok(())
        } else {
            Err(said.to_string())
        }
    });
}

#[test]
fn private_networks_and_tables_that_somebody_keeps_are_bounded() {
    let machine = machine();
    // The listener keeps the namespace alive, the table of aliases only itself.
    for which in ["0", "3"] {
        let mut hoarder = python(&machine, MEMBER, HOARD, &[which, "40"]);
        let said = hoarder.object();

        assert_eq!(said["kept"], 16, "{said}");
        assert_eq!(said["reply"]["kind"], "unsupported", "{said}");
        let message = said["reply"]["message"].as_str().unwrap();
        assert!(message.contains("at most 16"), "{message}");
        assert_eq!(
            said["again"]["kind"], "invalid",
            "one connection, one bundle"
        );
        let mut of_root = machine.session_of(0, r#""user""#, STEER);
        assert_eq!(
            machine.app(0, &["connect", "10.96.1.2:80"])["greeting"],
            "10.96.1.2:80"
        );
        of_root.kill();

        hoarder.kill();
        serves_again(&machine, Duration::from_secs(10));
    }
}

#[test]
fn connections_that_are_refused_take_no_room_of_others() {
    let machine = machine();
    let mut idle = python(&machine, MEMBER, IDLE, &["80"]);

    for _ in 0..4 {
        idle.object();
        let session = machine.session_of(0, r#""user""#, STEER);
        assert_eq!(
            machine.app(0, &["connect", "10.96.1.2:80"])["greeting"],
            "10.96.1.2:80"
        );
        drop(session);
    }
}

#[test]
fn a_root_daemon_without_descriptors_goes_on_when_it_has_some_again() {
    let mut machine = machine();
    machine.may_warn();
    let session = machine.session();
    let daemon = machine.daemon_mut().pid();
    let limit = |count: &str| sh(&format!("prlimit --pid {daemon} --nofile={count}:4096"));
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd"))
        .unwrap()
        .count();
    limit(&(open + 2).to_string());

    let mut idle = python(&machine, MEMBER, IDLE, &["6"]);
    idle.object();
    machine
        .daemon_mut()
        .wait_for_line("Cannot accept a connection at the moment");
    idle.kill();
    limit("1024");

    assert_eq!(
        machine.app(MEMBER, &["connect", "10.96.1.2:80"])["greeting"],
        "10.96.1.2:80"
    );
    drop(session);
    serves_again(&machine, Duration::from_secs(5));
}

#[test]
fn thousands_of_networks_are_steered() {
    let machine = machine();
    // Beyond what is unreachable anyway: whether the neighbour answers depends on this computer.
    let unreachable = ["ip", "route", "add", "unreachable", "10.0.0.0/8"];
    let done = machine.command(&unreachable).status();
    assert!(done.is_ok_and(|status| status.success()));
    let mut session = machine.session();
    // Every other address, so that no two form a larger network.
    let part = |n: u32| {
        let networks: Vec<String> = (0..1000)
            .map(|host| format!("10.{}.{}.{}/32", 96 + n, host / 125, host % 125 * 2))
            .collect();
        networks
    };
    let connect = |address: &str| machine.app(MEMBER, &["connect", address])["errno"].clone();
    let include = |session: &mut Process, n: u32| {
        session.ask(&json!({"request": "steer", "include": part(n)}))
    };
    let remove = |session: &mut Process, n: u32| {
        session.ask(&json!({"request": "steer", "remove": part(n)}))
    };
    let whole = json!({"request": "steer", "remove": ["10.96.0.0/12"]});
    assert_eq!(session.ask(&whole)["reply"], "done");

    for n in 0..6 {
        assert_eq!(include(&mut session, n)["reply"], "done");
    }
    for steered in ["10.96.0.0:80", "10.100.7.248:80", "10.101.3.2:80"] {
        assert_eq!(connect(steered), json!(null), "{steered}");
    }
    assert_eq!(connect("10.96.0.1:80"), "EHOSTUNREACH");
    assert_eq!(remove(&mut session, 4)["reply"], "done");
    assert_eq!(connect("10.96.0.0:80"), json!(null));
    assert_eq!(connect("10.100.7.248:80"), "EHOSTUNREACH");

    // One that does not fit is refused whole.
    let refused = (6..40).find_map(|n| {
        let reply = include(&mut session, n);
        (reply["reply"] != "done").then_some((n, reply))
    });
    let (n, reply) = refused.expect("there is a bound");
    assert_eq!(reply["kind"], "invalid", "{reply}");
    assert_eq!(connect(&format!("10.{}.0.0:80", 96 + n)), "EHOSTUNREACH");
    assert_eq!(connect("10.101.3.2:80"), json!(null));
}

/// Leaves root the last descriptor of a socket that takes hours to close: its peer does not read,
/// and it has SO_LINGER.
const LINGER: &str = r#"
import array, json, os, socket, struct, sys
def ask(request, fd):
    rights = array.array('i', [fd])
    root.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
root = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
root.connect(sys.argv[1])
ask({'request': 'open', 'scope': 'user'}, os.open('/proc/self/ns/net', 0))
root.recv(65536)
listener = socket.create_server(('127.0.0.1', 0))
full = socket.create_connection(listener.getsockname())
silent = listener.accept()[0]
full.setblocking(False)
try:
    while True: full.send(bytes(65536))
except BlockingIOError: pass
full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 10000))
# Root comes to it only when this process has closed it.
for _ in range(20): root.send(b'{"request": "counters"}')
ask(json.loads(sys.argv[2]), full.fileno())
full.close()
for _ in range(20): root.recv(65536)
print(root.recv(65536).decode(), flush=True)
root.close()
sys.stdin.read()
"#;

#[test]
fn a_descriptor_that_is_slow_to_close_holds_up_nobody() {
    let mut machine = machine();
    let before = machine.snapshot();

    for (request, reply) in [
        (r#"{"request": "counters"}"#, "refused"),
        // It carries a socket of the session.
        (
            r#"{"request": "show_client", "client": "10.0.0.1:1"}"#,
            "done",
        ),
    ] {
        let mut lingering = python(&machine, MEMBER, LINGER, &[request]);
        let said = lingering.object();
        assert_eq!(said["reply"], reply, "{said}");
        machine.assert_as(&before);
    }

    machine.daemon_mut().signal(Signal::TERM);
    assert!(machine.daemon_mut().wait());
}

#[test]
fn ending_a_session_touches_no_filter_of_the_machine() {
    let machine = machine();
    let run = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let output = machine.command(&words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Interface numbers, preference and handle of a private namespace.
    for index in 2..8 {
        if index > 2 {
            run(&format!("ip link add d{index} index {index} type bridge"));
        }
        let name = if index == 2 {
            "e0".to_owned()
        } else {
            format!("d{index}")
        };
        let shown = run(&format!("ip -o link show dev {name}"));
        assert!(shown.starts_with(&format!("{index}: ")), "{shown}");
    }
    // Matches nothing, on any kernel.
    let program = machine.dir().join("filter").display().to_string();
    std::fs::write(&program, "1,6 0 0 0").unwrap();
    let names = ["e0", "d3", "d4", "d5", "d6", "d7"];
    for name in names {
        run(&format!("tc qdisc add dev {name} clsact"));
        for way in ["ingress", "egress"] {
            run(&format!(
                "tc filter add dev {name} {way} protocol all pref 49152 handle 0x1 \
                 bpf bytecode-file {program}"
            ));
        }
    }
    let filters = || -> Vec<String> {
        names
            .iter()
            .flat_map(|name| ["ingress", "egress"].map(|way| (name, way)))
            .map(|(name, way)| run(&format!("tc filter show dev {name} {way}")))
            .collect()
    };
    let before = filters();
    assert!(
        before.iter().all(|it| it.contains("handle 0x1 ")),
        "{before:?}"
    );

    let mut session = machine.session();
    let hooks = session.greeting["bundle"]["hooks"].to_string();
    assert!(hooks.contains("tc/ingress"), "{hooks}");
    assert_eq!(
        machine.app(MEMBER, &["connect", "10.96.1.2:80"])["greeting"],
        "10.96.1.2:80"
    );
    assert_eq!(session.ask(&json!({"request": "close"}))["reply"], "done");

    assert_eq!(filters(), before);
}

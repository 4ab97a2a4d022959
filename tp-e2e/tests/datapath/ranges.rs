//! Ranges of aliases, and that no other host has them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tp_e2e::datapath::{MEMBER, Machine, OUTSIDER, Process};

use crate::{machine, sh};

/// Programs that give out fake addresses for names use these.
const FAKE: &str = "198.18.1.0";

/// The neighbour answers for that address, as a proxy in between does: refused, not silent.
#[track_caller]
fn assert_neighbours(machine: &Machine, address: &str, when: &str) {
    for uid in [MEMBER, OUTSIDER, 0] {
        let seen = machine.app(uid, &["connect", &format!("{address}:80")]);
        assert_eq!(seen["errno"], "ECONNREFUSED", "{when}, uid {uid}: {seen}");
    }
}

#[test]
fn addresses_that_proxies_give_out_stay_theirs() {
    let machine = machine();
    let neighbour = machine.neighbour();
    sh(&format!("ip -n {neighbour} address add {FAKE}/32 dev lo"));
    assert_neighbours(&machine, FAKE, "before");

    let session = machine.session();
    for address in ["10.96.1.2:80", "10.96.1.3:80"] {
        assert_eq!(
            machine.app(MEMBER, &["connect", address])["greeting"],
            address
        );
    }
    assert_neighbours(&machine, FAKE, "with a session");
    drop(session);

    assert_neighbours(&machine, FAKE, "afterwards");
}

#[test]
fn an_address_of_the_range_never_leads_to_what_it_stands_for() {
    let machine = machine();
    let before = machine.snapshot();
    let mut session = machine.session();
    let used = machine.app(MEMBER, &["connect", "10.96.1.2:80"]);
    assert_eq!(used["greeting"], "10.96.1.2:80");
    let alias = session.alias(0);
    let neighbour = machine.neighbour();
    // A host has that address after all.
    sh(&format!("ip -n {neighbour} address add {alias}/32 dev lo"));

    for uid in [MEMBER, OUTSIDER, 0] {
        let seen = machine.app(uid, &["connect", &format!("{alias}:80"), "timeout=400"]);
        assert!(seen["greeting"].is_null(), "uid {uid}: {seen}");
        assert!(seen["errno"].is_string(), "uid {uid}: {seen}");
    }
    assert_eq!(session.counter("steered"), 1);
    session.kill();

    machine.assert_as(&before);
    assert_neighbours(&machine, &alias, "afterwards");
}

/// Occupies all of 240.0.0.0/4 but one block of 65536 addresses and its neighbour, by a route in a
/// separate table, a rule, an address, and the session's cluster networks.
#[test]
fn the_range_is_one_that_no_table_no_rule_no_address_and_no_cluster_speaks_of() {
    let machine = machine();
    let run = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let done = machine.command(&words).status();
        assert!(done.is_ok_and(|status| status.success()), "{words:?}");
    };
    for first in [241, 242, 243, 244, 245, 247, 248, 249] {
        run(&format!("ip route add {first}.0.0.0/8 dev e0 table 2022"));
    }
    run("ip rule add pref 9000 to 251.0.0.0/8 lookup 2022");
    run("ip route add unreachable 252.128.0.0/9");
    run("ip address add 252.64.0.1/10 dev e0");

    for _ in 0..3 {
        let session = machine.session();
        let base = base(&session);
        assert_eq!(base.octets()[0], 252, "{base}");
        assert!(base.octets()[1] < 64, "{base}");
    }
    let open = json!({
        "request": "open",
        "scope": "user",
        "avoid": ["252.0.0.0/11", "252.34.0.0/15", "252.36.0.0/14", "252.40.0.0/13", "252.48.0.0/12"],
    });
    let reply = ask_root_daemon(&machine, &open);
    assert_eq!(reply["alias_base"], "252.32.0.0", "{reply}");

    let nothing_left = json!({"request": "open", "scope": "user", "avoid": ["252.0.0.0/10"]});
    let refused = ask_root_daemon(&machine, &nothing_left);
    assert_eq!(refused["kind"], "unsupported", "{refused}");
}

#[test]
fn no_program_takes_the_links_address_for_one_of_the_machines() {
    let machine = machine();
    let global = || {
        let shown = machine
            .command(&["ip", "-4", "-o", "address", "show", "scope", "global"])
            .output();
        String::from_utf8_lossy(&shown.unwrap().stdout).into_owned()
    };
    let before = global();

    let session = machine.session();

    assert_eq!(global(), before);
    drop(session);
}

/// Sends the root daemon exactly this request for a bundle.
fn ask_root_daemon(machine: &Machine, open: &Value) -> Value {
    let script = "\
        import array, os, socket, sys\n\
        root = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
        root.connect(sys.argv[1])\n\
        netns = array.array('i', [os.open('/proc/self/ns/net', 0)])\n\
        root.sendmsg([sys.argv[2].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, netns)])\n\
        print(root.recv(65536).decode(), flush=True)\n";
    let words = [
        "python3",
        "-c",
        script,
        &machine.socket(),
        &open.to_string(),
    ];

    Process::start(&mut machine.command(&words)).object()
}

fn base(session: &Process) -> Ipv4Addr {
    let base = session.greeting["bundle"]["alias_base"].as_str();
    base.unwrap().parse().unwrap()
}

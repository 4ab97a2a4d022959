//! What is loaded and attached: once for all sessions, while there is one.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use tp_e2e::{
    datapath::{Kind, MEMBER, Machine, OUTSIDER, Process},
    process::eventually,
};
use tp_root_api::PROTOCOL;

use super::{NARROW, WIDE, assert_reaches, close, open};
use crate::{Cgroup, machine, sh};

const USER: &str = r#""user""#;

/// Ids of the programs and links that the root daemon holds; without the links of private namespaces,
/// of which each session has one.
fn held(machine: &mut Machine) -> BTreeSet<(String, u64)> {
    let daemon = machine.daemon_mut().pid();
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{daemon}/fdinfo")).unwrap() {
        // A descriptor may be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry.unwrap().path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().to_owned())
        };
        if field("link_type").as_deref() == Some("netns") {
            continue;
        }
        for kind in ["link_id", "prog_id"] {
            if let Some(id) = field(kind) {
                held.insert((kind.to_owned(), id.parse().unwrap()));
                break;
            }
        }
    }

    held
}

#[test]
fn only_the_first_session_loads_and_attaches_and_only_the_last_takes_it_away() {
    let mut machine = machine();
    let before = machine.snapshot();
    assert_eq!(held(&mut machine), BTreeSet::new());

    for _ in 0..2 {
        let mut first = open(&machine, 1, MEMBER, USER, NARROW);
        let loaded = held(&mut machine);
        assert_eq!(numbers(&mut machine), (13, 8), "{loaded:?}");

        for request in [
            json!({"request": "steer", "include": ["10.104.0.0/13"], "exclude": ["10.97.0.0/16"]}),
            json!({"request": "steer", "remove": ["10.104.0.0/13"]}),
            json!({"request": "name_servers", "servers": ["10.200.0.1:53", "172.31.0.53:53"]}),
            json!({"request": "name_servers", "servers": []}),
        ] {
            assert_eq!(first.ask(&request)["reply"], "done");
            assert_eq!(held(&mut machine), loaded, "{request}");
        }
        let second = open(&machine, 2, OUTSIDER, USER, NARROW);
        assert_eq!(held(&mut machine), loaded);
        assert_reaches(&machine, OUTSIDER, "10.96.1.2:80", 2);
        close(second);
        assert_eq!(held(&mut machine), loaded);
        // The first is not the last to end.
        let third = open(&machine, 3, 0, r#""system""#, WIDE);
        close(first);
        assert_eq!(held(&mut machine), loaded);
        assert_reaches(&machine, MEMBER, "10.96.1.2:80", 3);

        close(third);
        assert_eq!(held(&mut machine), BTreeSet::new());
        machine.assert_as(&before);
    }
}

/// The numbers of programs and links.
fn numbers(machine: &mut Machine) -> (usize, usize) {
    let held = held(machine);
    let count = |kind: &str| held.iter().filter(|(it, _)| it == kind).count();

    (count("prog_id"), count("link_id"))
}

#[track_caller]
fn becomes(machine: &mut Machine, expected: (usize, usize)) {
    eventually("programs to be as many", Duration::from_secs(10), || {
        let now = numbers(machine);
        (now == expected).then_some(()).ok_or(format!("{now:?}"))
    });
}

/// Looks for so long: what must not happen would happen a moment later.
#[track_caller]
fn stays(machine: &mut Machine, expected: (usize, usize), time: Duration) {
    let end = Instant::now() + time;
    eventually("that time to pass", time * 2, || {
        assert_eq!(numbers(machine), expected);
        match Instant::now() < end {
            true => Err("it has not passed".to_owned()),
            false => Ok(()),
        }
    });
}

/// Waits until the numbers have not changed for so long.
#[track_caller]
fn settles(machine: &mut Machine, expected: (usize, usize), time: Duration) {
    let mut since = Instant::now();
    eventually("programs to stay as many", time * 10, || {
        let now = numbers(machine);
        if now != expected {
            since = Instant::now();
        }
        match since.elapsed() > time {
            true => Ok(()),
            false => Err(format!("{now:?}")),
        }
    });
}

/// A session that has said hello, and is to come.
fn expected_session(machine: &Machine, protocol: u32) -> Process {
    let mut client = Process::start(&mut machine.helper(MEMBER, &["requests", &machine.socket()]));
    let hello = json!({
        "request": "hello", "version": "0", "protocol": protocol, "connects": true,
    });
    assert_eq!(client.ask(&hello)["reply"], "hello");

    client
}

#[test]
fn programs_are_loaded_for_a_session_that_is_to_come_and_attached_by_it() {
    let mut machine = machine();
    let before = machine.snapshot();

    let begun = Instant::now();
    let first = expected_session(&machine, PROTOCOL);
    becomes(&mut machine, (13, 0));
    let long_enough = begun.elapsed() * 3 + Duration::from_millis(200);
    drop(first);
    becomes(&mut machine, (0, 0));
    // None of another protocol comes.
    let foreign = expected_session(&machine, PROTOCOL + 1);
    stays(&mut machine, (0, 0), long_enough);
    drop(foreign);

    let one = expected_session(&machine, PROTOCOL);
    let mut other = expected_session(&machine, PROTOCOL);
    becomes(&mut machine, (13, 0));
    let loaded = held(&mut machine);
    drop(one);
    // For the other they are kept, loaded once, and it has them.
    stays(&mut machine, (13, 0), long_enough);
    assert_eq!(held(&mut machine), loaded);
    let opened = other.ask(&json!({"request": "open", "scope": "user"}));
    assert_eq!(opened["reply"], "opened", "{opened}");
    assert!(held(&mut machine).is_superset(&loaded));
    // Nothing is loaded beside them.
    let third = expected_session(&machine, PROTOCOL);
    stays(&mut machine, (13, 8), long_enough);
    assert!(held(&mut machine).is_superset(&loaded));
    assert_eq!(other.ask(&json!({"request": "close"}))["reply"], "done");
    assert_eq!(numbers(&mut machine), (0, 0));
    drop((third, other));

    // One that goes while they are being loaded, or before: none are left once they have been.
    drop(expected_session(&machine, PROTOCOL));
    settles(&mut machine, (0, 0), long_enough);
    machine.assert_as(&before);
}

#[test]
fn a_killed_root_daemon_with_several_sessions_leaves_nothing_behind() {
    let mut machine = machine();
    let cgroup = Cgroup::new(MEMBER);
    let before = machine.snapshot();
    let mut sessions = [
        open(&machine, 1, MEMBER, USER, NARROW),
        open(&machine, 2, MEMBER, &cgroup.scope(), NARROW),
        open(&machine, 3, OUTSIDER, USER, NARROW),
        open(&machine, 4, 0, r#""system""#, WIDE),
    ];
    let mut apps = [MEMBER, OUTSIDER, 0].map(|uid| {
        let mut app = machine.start_app(uid, &["hold", "10.96.1.2:80"]);
        assert_eq!(app.object()["event"], "held");
        app
    });
    for session in &mut sessions {
        session.say("wait");
    }

    machine.daemon_mut().kill();

    machine.assert_as(&before);
    for app in &mut apps {
        assert!(app.object()["errno"].is_string());
    }
    for session in &mut sessions {
        assert!(session.wait());
    }
    machine.start_daemon(&["--group", &MEMBER.to_string()]);
    let _next = open(&machine, 5, MEMBER, USER, NARROW);
    assert_reaches(&machine, MEMBER, "10.96.1.2:80", 5);
}

/// Lets the root daemon have one descriptor more at a time until a session opens; returns how many
/// openings were refused. `base` is how many it has without.
#[track_caller]
fn open_with_more_and_more_descriptors(
    machine: &mut Machine,
    client: &mut Process,
    base: usize,
    step: usize,
) -> usize {
    let daemon = machine.daemon_mut().pid();
    let open = json!({"request": "open", "scope": "user"});
    for refused in 0..200 {
        let limit = base + 1 + refused * step;
        sh(&format!("prlimit --pid {daemon} --nofile={limit}:4096"));
        let reply = client.ask(&open);
        if reply["reply"] == "opened" {
            return refused;
        }
        let message = reply["message"].as_str().unwrap_or_default();
        assert_eq!(reply["reply"], "refused", "{reply}");
        assert!(!message.is_empty() && !message.contains('\n'), "{reply}");
        assert_eq!(descriptors(machine), base, "{limit}: {reply}");
    }
    panic!("no session opens");
}

fn descriptors(machine: &mut Machine) -> usize {
    let daemon = machine.daemon_mut().pid();

    fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count()
}

#[test]
fn an_opening_that_fails_on_the_way_takes_everything_back() {
    let mut machine = machine();
    machine.may_warn();
    let client = |machine: &Machine| {
        let mut client =
            Process::start(&mut machine.helper(MEMBER, &["requests", &machine.socket()]));
        let hello = json!({"request": "hello", "version": "0", "protocol": PROTOCOL});
        assert_eq!(client.ask(&hello)["reply"], "hello");
        client
    };
    let nothing = machine.snapshot();

    // The first session loads the programs.
    let mut first = client(&machine);
    let base = descriptors(&mut machine);
    let refused = open_with_more_and_more_descriptors(&mut machine, &mut first, base, 7);
    assert!(refused >= 5, "{refused}");
    assert_eq!(first.ask(&json!({"request": "close"}))["reply"], "done");
    assert_eq!(descriptors(&mut machine), base);
    machine.assert_as(&nothing);

    let daemon = machine.daemon_mut().pid();
    sh(&format!("prlimit --pid {daemon} --nofile=1024:4096"));
    let living = machine.session_like(Kind {
        uid: OUTSIDER,
        number: 1,
        ..Kind::default()
    });
    let beside = machine.snapshot();
    let loaded = held(&mut machine);
    let mut second = client(&machine);
    let base = descriptors(&mut machine);
    let refused = open_with_more_and_more_descriptors(&mut machine, &mut second, base, 1);
    assert!(refused >= 10, "{refused}");
    assert_eq!(second.ask(&json!({"request": "close"}))["reply"], "done");
    machine.assert_as(&beside);
    assert_eq!(held(&mut machine), loaded);

    assert_reaches(&machine, OUTSIDER, "10.96.1.2:80", 1);
    drop(living);
}

//! What each session and each user may have, and that nobody has less because of another.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tp_e2e::{
    datapath::{MEMBER, Machine, OUTSIDER, Process, STEER},
    process::eventually,
};

use super::{assert_reaches, open};
use crate::{HELPER, aliases::with_few_aliases, machine};

const USER: &str = r#""user""#;
/// For one request of a user whose own session is small, whatever others do.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1500);

/// Networks of one address each, of which no two form a larger one.
fn networks(n: u32) -> Vec<String> {
    (0..1000)
        .map(|host| format!("10.{}.{}.{}/32", n, host / 125, host % 125 * 2))
        .collect()
}

/// All networks that aliases can be of.
fn ranges_of_aliases() -> Vec<String> {
    (240..256)
        .flat_map(|first| (0..256).map(move |second| format!("{first}.{second}.0.0/16")))
        .collect()
}

/// Steers all these networks, and then a thousand more at a time until there may be no more.
#[track_caller]
fn fill_with_networks(session: &mut Process, all: &[String], first: u32) {
    let mut steer = |networks: &[String]| {
        let reply = session.ask(&json!({"request": "steer", "include": networks}));
        let is_done = reply["reply"] == "done";
        assert!(is_done || reply["kind"] == "invalid", "{reply}");
        is_done
    };
    assert!(all.chunks(1024).all(&mut steer));
    let more = (first..first + 40)
        .take_while(|n| steer(&networks(*n)))
        .count();
    assert!((28..40).contains(&more), "{more} thousands");
}

/// Fails the test unless a request of this session is carried out in time.
#[track_caller]
fn ask_in_time(session: &mut Process, request: &Value) {
    let begin = Instant::now();
    let reply = session.ask(request);
    let elapsed = begin.elapsed();

    assert_ne!(reply["reply"], "refused", "{reply}");
    assert!(elapsed < REQUEST_TIMEOUT, "{elapsed:?} for {request}");
}

#[test]
fn a_user_who_has_all_that_one_may_have_costs_another_nothing() {
    let machine = with_few_aliases();
    let mut of_root = machine.session_of(0, USER, STEER);
    let mut full = [1, 2].map(|number| open(&machine, number, MEMBER, USER, STEER));
    let all = [Vec::new(), ranges_of_aliases()];
    for (session, (all, first)) in full.iter_mut().zip(all.iter().zip([0, 40])) {
        let servers: Vec<String> = (1..=64).map(|n| format!("203.0.113.{n}:53")).collect();
        let servers = json!({"request": "name_servers", "servers": servers});
        assert_eq!(session.ask(&servers)["reply"], "done");
        fill_with_networks(session, all, first);
    }
    let mut more = Process::start(&mut machine.helper(MEMBER, &["requests", &machine.socket()]));
    let seen = machine.app(MEMBER, &["many", "10.100.0.0:7001", "300"]);
    assert!(seen["errors"]["EPERM"].as_u64() > Some(0), "{seen}");

    let is_over = AtomicBool::new(false);
    // No range is left for aliases of this user: all are looked at.
    let third = json!({"request": "open", "scope": "user"});
    assert_eq!(more.ask(&third)["kind"], "unsupported");
    let [first, second] = &mut full;
    let steer = |change: &str| json!({"request": "steer", change: networks(0)});
    thread::scope(|scope| {
        for (session, requests) in [
            (first, vec![steer("remove"), steer("include")]),
            (second, vec![json!({"request": "overlaps"})]),
            (&mut more, vec![third]),
        ] {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    for request in &requests {
                        session.ask(request);
                    }
                }
            });
        }
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for n in 0..4 {
            let first = format!("10.101.{n}.0:80");
            let begin = Instant::now();
            let seen = machine.app(0, &["many", &first, "20"]);
            assert_eq!(seen["greeted"], 20, "{seen}");
            assert!(begin.elapsed() < Duration::from_secs(3), "{seen}");
            let more = json!({"request": "steer", "include": [format!("10.{}.0.0/16", 112 + n)]});
            ask_in_time(&mut of_root, &more);
            ask_in_time(&mut of_root, &json!({"request": "overlaps"}));
        }
        let begin = Instant::now();
        let of_outsider = open(&machine, 3, OUTSIDER, USER, STEER);
        assert!(
            begin.elapsed() < 2 * REQUEST_TIMEOUT,
            "{:?}",
            begin.elapsed()
        );
        assert_reaches(&machine, OUTSIDER, "10.96.1.2:80", 3);
        drop(of_outsider);
    });
    assert_eq!(of_root.counter("alias_table_full"), 0);
    assert_eq!(of_root.counter("aliases"), 80);
}

/// Calls its function when it is dropped, also when an assertion has failed.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Opens as many bundles as the root daemon lets this user have, and keeps them.
#[track_caller]
fn openers(machine: &Machine, uid: u32, count: u32) -> (Process, Value) {
    let words = [
        "openers",
        &machine.socket(),
        r#"{"scope":"user"}"#,
        &count.to_string(),
    ];
    let mut openers = Process::start(&mut machine.helper_in(uid, &MEMBER.to_string(), &words));
    let said = openers.object();

    (openers, said)
}

#[test]
fn a_user_has_eight_sessions_and_a_machine_sixty_four_and_each_more_is_refused_in_one_sentence() {
    let mut machine = Machine::without_daemon(Path::new(HELPER));
    let daemon = machine.dir().join("tp-daemon").display().to_string();
    // What systemd gives a service.
    let usual = ["prlimit", "--nofile=1024:", &daemon].map(str::to_owned);
    machine.start_daemon_by(&usual, &["--group", &MEMBER.to_string()]);
    let before = machine.snapshot();
    let refusal = |said: &Value| {
        assert_eq!(said["refused"]["kind"], "unsupported", "{said}");
        let message = said["refused"]["message"].as_str().unwrap().to_owned();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    let mut all = Vec::new();
    for uid in 3001..=3008 {
        let (process, said) = openers(&machine, uid, 9);
        assert_eq!(said["opened"], 8, "uid {uid}: {said}");
        assert!(refusal(&said).contains("8 sessions already"), "{said}");
        all.push(process);
    }

    let (_process, said) = openers(&machine, 3009, 1);
    assert_eq!(said["opened"], 0, "{said}");
    let message = refusal(&said);
    assert!(message.contains("64 sessions"), "{message}");

    let mut one = all.pop().unwrap();
    one.kill();
    eventually("room for a session", Duration::from_secs(5), || {
        let (_process, said) = openers(&machine, 3009, 1);
        (said["opened"] == 1)
            .then_some(())
            .ok_or_else(|| said.to_string())
    });
    for process in &mut all {
        process.kill();
    }
    eventually(
        "the machine to be as before",
        Duration::from_secs(10),
        || {
            let differences = machine.snapshot().differences(&before);
            differences.is_empty().then_some(()).ok_or(differences)
        },
    );
}

#[test]
fn a_session_that_said_hello_in_another_protocol_is_refused_in_one_sentence() {
    let machine = machine();
    let mut client = Process::start(&mut machine.helper(MEMBER, &["requests", &machine.socket()]));
    let open = json!({"request": "open", "scope": "user"});

    for protocol in [1, 3] {
        let hello = json!({"request": "hello", "version": "9.9.9", "protocol": protocol});
        let answer = client.ask(&hello);
        assert_eq!(answer["protocol"], 2, "{answer}");
        let refused = client.ask(&open);
        assert_eq!(refused["kind"], "unsupported", "{refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.contains("sudo tp-daemon install") && !message.contains('\n'),
            "{message}"
        );
    }
    // Before there were numbers it was the first.
    client.ask(&json!({"request": "hello", "version": "0.1.0"}));
    assert_eq!(client.ask(&open)["kind"], "unsupported");
    client.ask(&json!({"request": "hello", "version": "0.1.0", "protocol": 2}));
    assert_eq!(client.ask(&open)["reply"], "opened");
}

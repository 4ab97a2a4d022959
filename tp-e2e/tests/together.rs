//! Concurrent commands: whoever connects, quits or dies, nobody ends what another has started.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tp_e2e::{
    cluster::{Impairment, testbed},
    daemons::{self, Role},
    lock::alone,
    netns::{AS_BEFORE, Snapshot},
    process::{Finished, PATIENCE, Running, eventually, run, signal},
    user::Account,
    workstation::{CONNECT_TO_SHOP, READ_WEB, Workstation},
};

/// For the programs of a workstation to reach the state that a test needs.
const SOON: Duration = Duration::from_secs(10);

fn start_connects(workstation: &Workstation, count: usize) -> Vec<Running> {
    (0..count)
        .map(|_| workstation.start(&CONNECT_TO_SHOP))
        .collect()
}

fn finish_all(running: Vec<Running>) -> Vec<Finished> {
    running
        .into_iter()
        .map(|one| one.finish(PATIENCE))
        .collect()
}

/// One with a root daemon that stays, and one without, so that each `tp` may have to start it.
fn workstations() -> [Workstation; 2] {
    testbed().install_tp();

    [
        Workstation::new(Account::Member, "dev"),
        Workstation::without_root_daemon(Account::Root, "dev"),
    ]
}

#[test]
fn connects_at_the_same_moment_end_with_one_connection_that_all_have() {
    let _alone = alone();
    for workstation in workstations() {
        for count in [2, 3, 8] {
            for finished in finish_all(start_connects(&workstation, count)) {
                finished.expect_success();
            }

            daemons::only(&workstation, Role::Session);
            daemons::only(&workstation, Role::Root);
            assert_eq!(workstation.status()["state"], "connected");
            workstation.read_web();
            workstation.tp(&["quit"]).expect_success();
        }
    }
}

#[test]
fn commands_at_the_same_moment_all_run_connected() {
    let _alone = alone();
    for workstation in workstations() {
        let words = [&CONNECT_TO_SHOP[..], &["--"], &READ_WEB].concat();
        let running: Vec<_> = (0..3).map(|_| workstation.start(&words)).collect();

        for finished in finish_all(running) {
            assert_ne!(finished.expect_success(), "");
        }
        workstation.tp(&["status"]).expect_code(3);
    }
}

#[test]
fn an_interrupted_connect_leaves_the_attempt_to_those_who_take_part() {
    let _alone = alone();
    for workstation in workstations() {
        let away = testbed().impair(Impairment::ApiServerAway);
        let first = workstation.start(&CONNECT_TO_SHOP);
        workstation.expect_soon("connecting");
        let second = workstation.start(&[&CONNECT_TO_SHOP[..], &["--", "true"]].concat());
        let third = workstation.start(&CONNECT_TO_SHOP);
        // All three are connected to the session.
        let pid = daemons::only(&workstation, Role::Session);
        peers_are_soon(pid, 3);

        signal(first.pid(), Signal::INT);
        signal(second.pid(), Signal::KILL);
        first.finish(SOON).expect_code(130);
        drop(away);

        third.finish(PATIENCE).expect_success();
        workstation.read_web();
        assert_eq!(workstation.session_pid(), pid);
        workstation.tp(&["quit"]).expect_success();
    }
}

#[track_caller]
fn peers_are_soon(session: u32, count: usize) {
    eventually("all to have asked the session", SOON, || {
        // Unix sockets are listed by network namespace.
        let listed = run(
            testbed().inside(&testbed().workstation()).args([
                "ss",
                "--unix",
                "--all",
                "--processes",
                "--no-header",
            ]),
            PATIENCE,
        );
        let marks = ["/session-", " ESTAB ", &format!("pid={session},")];
        let peers = listed
            .stdout
            .lines()
            .filter(|line| marks.iter().all(|mark| line.contains(mark)))
            .count();
        if peers >= count {
            Ok(())
        } else {
            Err(format!("{peers} of {count}"))
        }
    });
}

#[test]
fn who_wants_another_place_waits_and_is_told_the_difference() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let away = testbed().impair(Impairment::ApiServerAway);
    let first = workstation.start(&CONNECT_TO_SHOP);
    workstation.expect_soon("connecting");
    let other = workstation.start(&["tp", "connect", "--namespace", "team-b"]);
    peers_are_soon(daemons::only(&workstation, Role::Session), 2);
    drop(away);

    first.finish(PATIENCE).expect_success();
    let refused = other.finish(PATIENCE).expect_code(4);
    assert!(refused.contains("namespace team-b (not shop)"), "{refused}");
    assert_eq!(workstation.status()["namespace"], "shop");
}

#[test]
fn all_who_take_part_in_an_attempt_hear_why_it_failed_and_nothing_is_left() {
    let _alone = alone();
    let before = Snapshot::take();
    testbed().install_tp();
    let workstation = Workstation::without_root_daemon(Account::Root, "dev");
    let _away = testbed().impair(Impairment::ApiServerAway);

    let finished = finish_all(start_connects(&workstation, 3));

    let [first, ..] = finished.as_slice() else {
        panic!("three have finished");
    };
    for one in &finished {
        assert_eq!(one.code(), 69, "{one}");
        assert_eq!(one.stderr, first.stderr);
    }
    daemons::assert_none(&workstation, AS_BEFORE);
    before.assert_restored();
}

#[test]
fn a_connect_that_fails_leaves_no_root_daemon() {
    let _alone = alone();
    testbed().install_tp();
    let workstation = Workstation::without_root_daemon(Account::Root, "dev");

    workstation
        .tp(&["connect", "--context", "moon"])
        .expect_code(78);

    daemons::assert_none(&workstation, AS_BEFORE);
}

#[test]
fn a_connect_that_fails_ends_no_connection() {
    let _alone = alone();
    let workstation = Workstation::without_root_daemon(Account::Root, "dev");
    testbed().install_tp();
    workstation.connect(&["--namespace", "shop"]);
    let root = workstation.root_pid();

    workstation
        .tp(&["connect", "--context", "moon"])
        .expect_code(78);
    workstation
        .tp(&["connect", "--namespace", "team-b"])
        .expect_code(4);

    workstation.read_web();
    assert_eq!(workstation.root_pid(), root);
}

#[test]
fn quitting_ends_an_attempt_and_whoever_takes_part_is_told() {
    let _alone = alone();
    for workstation in workstations() {
        let away = testbed().impair(Impairment::ApiServerAway);
        let connecting = workstation.start(&CONNECT_TO_SHOP);
        workstation.expect_soon("connecting");

        workstation.tp(&["quit"]).expect_success();

        let told = connecting.finish(SOON).expect_code(1);
        assert!(told.contains("`tp quit`"), "{told}");
        assert_eq!(daemons::of(&workstation, Role::Session), [0; 0]);
        drop(away);
        workstation.tp(&CONNECT_TO_SHOP[1..]).expect_success();
        workstation.tp(&["quit"]).expect_success();
    }
}

/// Ends with its input.
const UNTIL_TOLD: [&str; 3] = ["sh", "-c", "echo runs; cat"];

fn start_command(workstation: &Workstation) -> Running {
    let words = [&CONNECT_TO_SHOP[..], &["--"], &UNTIL_TOLD].concat();
    let mut running = workstation.start(&words);
    running.wait_for("runs", PATIENCE);

    running
}

#[test]
fn a_connection_made_for_commands_ends_with_the_last_of_them() {
    let _alone = alone();
    for workstation in workstations() {
        let [first, second] = [start_command(&workstation), start_command(&workstation)];

        first.finish(PATIENCE).expect_success();
        workstation.read_web();
        second.finish(PATIENCE).expect_success();

        workstation.tp(&["status"]).expect_code(3);
        assert_eq!(daemons::of(&workstation, Role::Session), [0; 0]);
    }
}

#[test]
fn a_command_that_is_killed_counts_as_ended() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let [first, second] = [start_command(&workstation), start_command(&workstation)];

    signal(first.pid(), Signal::KILL);
    drop(first);
    workstation.read_web();
    signal(second.pid(), Signal::KILL);
    drop(second);

    eventually("the session to end", SOON, || {
        let sessions = daemons::of(&workstation, Role::Session);
        if sessions.is_empty() {
            Ok(())
        } else {
            Err(format!("{sessions:?}"))
        }
    });
}

#[test]
fn a_connection_made_to_stay_outlives_commands_before_and_after() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let before = start_command(&workstation);
    workstation.tp(&CONNECT_TO_SHOP[1..]).expect_success();
    let after = start_command(&workstation);
    before.finish(PATIENCE).expect_success();
    after.finish(PATIENCE).expect_success();

    workstation.read_web();
    assert_eq!(workstation.status()["state"], "connected");
}

#[test]
fn whatever_was_killed_the_next_connect_works() {
    let _alone = alone();
    testbed().install_tp();
    let before = Snapshot::take();
    let mut workstation = Workstation::without_root_daemon(Account::Root, "dev");
    workstation.may_warn();
    let orders: [&[Role]; 4] = [
        &[Role::Root],
        &[Role::Session],
        &[Role::Root, Role::Session],
        &[Role::Session, Role::Root],
    ];
    for order in orders {
        workstation.tp(&CONNECT_TO_SHOP[1..]).expect_success();

        for role in order {
            daemons::kill(&workstation, *role);
        }

        workstation.tp(&CONNECT_TO_SHOP[1..]).expect_success();
        workstation.read_web();
        daemons::only(&workstation, Role::Session);
        daemons::only(&workstation, Role::Root);
    }
    workstation.tp(&["quit"]).expect_success();
    daemons::assert_none(&workstation, AS_BEFORE);
    before.assert_restored();
}

#[test]
fn another_network_namespace_has_a_connection_of_its_own() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let elsewhere = testbed().neighbour();
    let there = |words: &[&str]| run(&mut workstation.command_in(&elsewhere, words), PATIENCE);
    workstation.connect(&["--namespace", "shop"]);

    let status = there(&["tp", "status", "--output", "json"]);
    assert_eq!(status.code(), 3, "{status}");
    let reason = status.json()["reason"].to_string();
    assert!(reason.contains("another"), "{reason}");
    let connected = there(&CONNECT_TO_SHOP).expect_success();
    assert!(connected.starts_with("Connected"), "{connected}");
    there(&READ_WEB).expect_success();
    there(&["tp", "quit"]).expect_success();

    assert!(there(&READ_WEB).code() != 0, "connected still");
    workstation.read_web();
    daemons::only(&workstation, Role::Session);
}

#[test]
fn of_two_connections_of_a_user_the_first_has_what_both_steer_and_the_second_is_told() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let folder = workstation.home().join("run/other").display().to_string();
    workstation
        .run(&["mkdir", "-m", "700", &folder])
        .expect_success();
    let variable = format!("XDG_RUNTIME_DIR={folder}");
    let there = |words: &[&str]| {
        let words = [&["env", &variable], words].concat();
        run(&mut workstation.command(&words), PATIENCE)
    };
    let answered = |status: &Value| status["dns"]["answered"].as_u64().unwrap();
    let status_there = || there(&["tp", "status", "--output", "json"]).json();
    workstation.connect(&["--namespace", "shop"]);
    let first = format!("process {}", workstation.session_pid());

    let connected = there(&CONNECT_TO_SHOP);
    assert!(connected.stderr.contains(&first), "{}", connected.stderr);
    let notices = status_there()["notices"].to_string();
    assert!(
        notices.contains(&first) && notices.contains("and names through it"),
        "{notices}"
    );
    let before = answered(&workstation.status());
    workstation.read_web();
    assert!(answered(&workstation.status()) > before);
    assert_eq!(answered(&status_there()), 0);
    assert_eq!(workstation.status()["notices"], json!([]));

    workstation.tp(&["quit"]).expect_success();
    there(&READ_WEB).expect_success();
    let status = status_there();
    assert!(answered(&status) > 0, "{status}");
    assert_eq!(status["notices"], json!([]));
    there(&["tp", "quit"]).expect_success();
}

#[test]
fn the_daemons_keep_nothing_of_the_shell_that_started_them() {
    let _alone = alone();
    testbed().install_tp();
    let workstation = Workstation::without_root_daemon(Account::Root, "dev");
    let folder = workstation.home().join("gone");
    let (lock, folder) = (
        workstation.home().join("lock"),
        folder.display().to_string(),
    );
    let lock = lock.display().to_string();
    // A careless shell: a lock, a removed folder, ignored signals, a strange umask.
    let script = "mkdir \"$1\" && cd \"$1\" && umask 0 && trap '' INT HUP USR1 && exec 9>\"$0\" && \
                  flock 9 && tp connect --namespace shop && cd / && rmdir \"$1\"";

    workstation
        .run(&["sh", "-c", script, &lock, &folder])
        .expect_success();

    workstation
        .run(&["flock", "--nonblock", &lock, "true"])
        .expect_success();
    for role in [Role::Session, Role::Root] {
        let pid = daemons::only(&workstation, role);
        let proc = |name: &str| std::path::PathBuf::from(format!("/proc/{pid}/{name}"));
        let status = std::fs::read_to_string(proc("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {status}"))
                .trim()
                .to_owned()
        };
        assert_eq!(std::fs::read_link(proc("cwd")).unwrap().as_os_str(), "/");
        assert_eq!(field("NSsid:"), pid.to_string(), "{role:?}");
        let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
        let trapped = [Signal::INT, Signal::HUP, Signal::USR1];
        let left = trapped.map(|signal| ignored & 1 << (signal.as_raw() - 1));
        assert_eq!(left, [0; 3], "{role:?} ignores {ignored:x}");
        assert_ne!(field("Umask:"), "0000", "{role:?}");
    }
}

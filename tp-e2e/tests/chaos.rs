//! Connects, quits and kills at random moments: each round ends with a working connection and,
//! after quitting, a clean machine.
//!
//! `TP_ROUNDS` says how many rounds, `TP_SEED` with which random numbers: a failure names its seed.

use std::{env, time::Duration};

use fastrand::Rng;
use rustix::{event::poll, process::Signal, time::Timespec};
use tp_e2e::{
    cluster::testbed,
    daemons::{self, Role},
    netns::{AS_BEFORE, Snapshot},
    process::{PATIENCE, Running, kill_if_there},
    user::Account,
    workstation::Workstation,
};

const ROUNDS: u64 = 5;
const STEPS: usize = 10;
/// Longest time between two steps, in milliseconds: connecting takes some hundreds.
const MAX_GAP_MS: u64 = 150;

/// Waits a random time.
fn pass(random: &mut Rng) {
    let time = Timespec::try_from(Duration::from_millis(random.u64(..MAX_GAP_MS))).expect("small");
    let _ = poll(&mut [], Some(&time));
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// One round of [`STEPS`] steps. The programs may answer anything but must end.
fn disturb(workstation: &Workstation, random: &mut Rng) {
    let tp = |words: &[&str]| Running::start(&mut workstation.command(&[&["tp"], words].concat()));
    let mut running = Vec::new();
    for _ in 0..STEPS {
        match random.u8(..10) {
            0..=3 => running.push(tp(&["connect", "--namespace", "shop"])),
            4 => running.push(tp(&["connect", "--namespace", "team-b"])),
            5 => running.push(tp(&[
                "connect",
                "--namespace",
                "shop",
                "--",
                "sleep",
                "0.2",
            ])),
            6 => running.push(tp(&["quit"])),
            7 if !running.is_empty() => {
                let victim = random.usize(..running.len());
                let signal = [Signal::KILL, Signal::INT][usize::from(random.bool())];
                let victim: &mut Running = &mut running[victim];
                if !victim.has_ended() {
                    kill_if_there(victim.pid(), signal);
                }
            }
            8 => daemons::kill(workstation, Role::Session),
            _ => daemons::kill(workstation, Role::Root),
        }
        pass(random);
    }
    for one in running {
        one.finish(PATIENCE);
    }
}

#[test]
fn whatever_is_started_quit_and_killed_the_next_connect_works_and_quitting_leaves_nothing() {
    testbed().install_tp();
    let before = Snapshot::take();
    let mut workstation = Workstation::without_root_daemon(Account::Root, "dev");
    workstation.may_warn();
    let seed = number("TP_SEED", u64::from(std::process::id()));
    for round in 0..number("TP_ROUNDS", ROUNDS) {
        let seed = seed + round;
        eprintln!("round {round}: TP_SEED={seed}");
        disturb(&workstation, &mut Rng::with_seed(seed));

        let mut connected = workstation.tp(&["connect", "--namespace", "shop"]);
        // A step may have connected to the other namespace.
        if connected.code() == 4 {
            workstation.tp(&["quit"]).expect_success();
            connected = workstation.tp(&["connect", "--namespace", "shop"]);
        }
        connected.expect_success();
        workstation.read_web();
        daemons::only(&workstation, Role::Session);
        daemons::only(&workstation, Role::Root);

        workstation.tp(&["quit"]).expect_success();
        daemons::assert_none(&workstation, AS_BEFORE);
        before.assert_restored();
    }
}

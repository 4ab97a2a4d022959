//! What the hooks cost whoever calls: with many sessions as much as with one.
//!
//! With `TP_CALLS=1000000` in the environment, that many calls of each kind are measured, and the
//! figures of `docs/performance.md` are printed (`--nocapture`). `TP_BEFORE` names the root daemon of
//! another build, which is then measured by turns with this one.

use std::{fs, path::Path};

use serde_json::Value;
use tp_e2e::datapath::{MEMBER, Machine, NAME_SERVERS, OUTSIDER, Process};

use crate::machine;
use figures::{Cell, Figures};

mod figures;

/// Numbers of sessions, each of which a round has once.
const COUNTS: [usize; 4] = [0, 1, 4, 16];
/// The users of the sessions, in whose turns they are opened.
const USERS: [u32; 4] = [MEMBER, 65533, 65532, 65531];
const STEERED: &str = r#"{"include":["198.18.1.0/24","10.96.0.0/12"],"exclude":["10.96.9.0/24"]}"#;

/// Of undisturbed rounds, these are enough.
const ROUNDS: usize = 4;
const MAX_ROUNDS: usize = 16;
const BATCHES: usize = 4;

/// Of figures to print.
const LONG_ROUNDS: usize = 10;
/// Of these, programs are timed, which makes calls slower.
const TIMED_ROUNDS: usize = 2;

/// Who calls, and whom.
struct Case {
    name: &'static str,
    uid: u32,
    targets: &'static str,
}

/// The targets are behind a bridge without ports, which drops datagrams at once.
const CASES: [Case; 4] = [
    Case {
        name: "no session; elsewhere",
        uid: OUTSIDER,
        targets: "198.18.0.2:9 198.18.0.3:9",
    },
    Case {
        name: "no session; to others' cluster",
        uid: OUTSIDER,
        targets: "198.18.1.2:9 198.18.1.3:9",
    },
    Case {
        name: "a session; elsewhere",
        uid: MEMBER,
        targets: "198.18.0.2:9 198.18.0.3:9",
    },
    // Datagrams to the cluster's networks are left alone, as late as anything is.
    Case {
        name: "a session; to its cluster",
        uid: MEMBER,
        targets: "198.18.1.2:9 198.18.1.3:9",
    },
];

const CALLS: [&str; 2] = ["connect", "sendto"];

/// A root daemon and the sessions that it serves.
struct Served {
    pid: u32,
    users: Vec<Process>,
}

impl Served {
    fn new(machine: &Machine, pid: u32, socket: &str) -> Self {
        let program = machine.dir().join("datapath").display().to_string();
        let hold = |uid: u32| {
            let (uid, group) = (uid.to_string(), MEMBER.to_string());
            let user = ["setpriv", "--reuid", &uid, "--regid", &uid, "--groups"];
            let sessions = [&program, "sessions", socket, STEERED, NAME_SERVERS];
            let words = [&user[..], &[&group, "--"], &sessions].concat();
            Process::start(&mut machine.command(&words))
        };

        Self {
            pid,
            users: USERS.map(hold).into(),
        }
    }

    /// Makes this the number of sessions.
    #[track_caller]
    fn hold(&mut self, count: usize) {
        let users = self.users.len();
        for (place, user) in self.users.iter_mut().enumerate() {
            let share = (count + users - 1 - place) / users;
            assert_eq!(user.tell(&share.to_string())["sessions"], share);
        }
    }

    /// What the kernel tells of the descriptors of the root daemon that have this field.
    fn descriptors_with(&self, field: &str) -> Vec<String> {
        fs::read_dir(format!("/proc/{}/fdinfo", self.pid))
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .filter(|info| info.contains(field))
            .collect()
    }

    /// Attachments to cgroups.
    fn attachments(&self) -> usize {
        self.descriptors_with("link_type:\tcgroup").len()
    }

    /// The time that the programs have run, in nanoseconds, and how often.
    fn program_runs(&self) -> (u64, u64) {
        let value = |info: &str, field: &str| -> u64 {
            let line = info.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|it| it.trim().parse().ok()).unwrap_or(0)
        };

        self.descriptors_with("run_cnt:")
            .iter()
            .map(|info| (value(info, "run_time_ns:"), value(info, "run_cnt:")))
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }
}

/// Everything that takes part, in one network namespace.
struct Bench {
    served: Vec<Served>,
    /// One of each user that calls.
    callers: Vec<(u32, Process)>,
    calls_per_batch: u64,
    figures: Figures,
    /// The root daemon of another build.
    _before: Option<Process>,
    machine: Machine,
}

impl Bench {
    fn new() -> Self {
        let mut machine = machine();
        for words in [
            "ip link add b0 type bridge",
            "ip link set b0 arp off",
            "ip address add 198.18.0.1/15 dev b0",
            "ip link set b0 up",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            assert!(machine.command(&words).status().unwrap().success());
        }
        let pid = machine.daemon_mut().pid();
        let mut served = vec![Served::new(&machine, pid, &machine.socket())];
        let before = std::env::var("TP_BEFORE").ok().map(|program| {
            let (daemon, socket) = daemon_of(&machine, Path::new(&program));
            served.push(Served::new(&machine, daemon.pid(), &socket));
            daemon
        });
        let mut callers: Vec<(u32, Process)> = [OUTSIDER, MEMBER]
            .map(|uid| (uid, machine.start_app(uid, &["calls"])))
            .into();
        let ready: Vec<Value> = callers.iter_mut().map(|(_, it)| it.object()).collect();

        Self {
            served,
            callers,
            calls_per_batch: ready[0]["batch"].as_u64().unwrap(),
            figures: Figures::default(),
            _before: before,
            machine,
        }
    }

    /// Measures every case with every number of sessions, which rises in one round and falls in the
    /// next.
    fn round(&mut self, number: usize, batches: usize, are_timed: bool) {
        let mut counts = COUNTS;
        if !number.is_multiple_of(2) {
            counts.reverse();
        }
        for served in 0..self.served.len() {
            for count in counts {
                self.served[served].hold(count);
                for ((case, description), call) in cases_and_calls() {
                    let cell = Cell {
                        served,
                        case,
                        call,
                        count,
                    };
                    self.measure(cell, description, number, batches, are_timed);
                }
            }
            if self.served.len() > 1 {
                self.served[served].hold(0);
            }
        }
    }

    fn measure(&mut self, cell: Cell, case: &Case, round: usize, batches: usize, is_timed: bool) {
        let (_, caller) = self
            .callers
            .iter_mut()
            .find(|(uid, _)| *uid == case.uid)
            .unwrap();
        let served = &self.served[cell.served];
        let before = is_timed.then(|| served.program_runs());
        let nanos = caller.tell(&format!("{} {} {batches}", cell.call, case.targets));
        match before {
            Some((ns, runs)) => {
                let calls = self.calls_per_batch * batches as u64;
                let (ns_after, runs_after) = served.program_runs();
                self.figures
                    .add_runs(cell, ns_after - ns, runs_after - runs, calls);
            }
            None => self.figures.add(cell, round, &nanos),
        }
    }
}

/// Starts the root daemon of another build, with a socket of its own.
fn daemon_of(machine: &Machine, program: &Path) -> (Process, String) {
    let copy = machine.dir().join("before").join("tp-daemon");
    fs::create_dir(copy.parent().unwrap()).unwrap();
    fs::copy(program, &copy).unwrap();
    let copy = copy.display().to_string();
    let socket = machine.dir().join("before.sock").display().to_string();
    let group = MEMBER.to_string();
    let own = ["setpriv", "--pdeathsig", "KILL", "--", &copy, "root"];
    let words = [&own[..], &["--socket", &socket, "--group", &group]].concat();
    let mut daemon = Process::start(machine.command(&words).env_remove("SUDO_UID"));
    daemon.wait_for_line("Root daemon is ready");

    (daemon, socket)
}

#[test]
fn the_hooks_cost_with_many_sessions_what_they_cost_with_one() {
    let mut bench = Bench::new();
    if let Ok(calls) = std::env::var("TP_CALLS") {
        return print_figures(&mut bench, calls.parse().unwrap());
    }
    let mut said = Vec::new();

    // What disturbs a batch only ever adds to it, so that each further round brings the lowest times
    // closer to the true ones; no round makes programs faster that look at each session.
    for round in 0..MAX_ROUNDS {
        bench.round(round, BATCHES, false);
        if round + 1 < ROUNDS {
            continue;
        }
        said = bench.figures.steep();
        if said.is_empty() {
            break;
        }
    }

    let table = bench.figures.table();
    assert!(said.is_empty(), "{}\n{table}", said.join("\n"));
}

#[test]
fn programs_are_attached_once_however_many_sessions_there_are() {
    let mut bench = Bench::new();
    let served = &mut bench.served[0];
    let attachments = [0, 1, 4].map(|count| {
        served.hold(count);
        served.attachments()
    });

    assert_eq!(attachments, [0, 8, 8]);
}

fn cases_and_calls() -> impl Iterator<Item = ((usize, &'static Case), &'static str)> {
    let cases = CASES.iter().enumerate();

    cases.flat_map(|case| CALLS.map(|call| (case, call)))
}

fn print_figures(bench: &mut Bench, calls: usize) {
    let batches = calls / bench.calls_per_batch as usize / LONG_ROUNDS;
    let batches = batches.max(1);
    for round in 0..LONG_ROUNDS {
        bench.round(round, batches, false);
    }
    let program = bench.machine.dir().join("datapath").display().to_string();
    let words = [program.as_str(), "time-programs"];
    let mut timer = Process::start(&mut bench.machine.command(&words));
    timer.object();
    for round in 0..TIMED_ROUNDS {
        bench.round(round, batches, true);
    }
    println!("{}", bench.figures.table());
}

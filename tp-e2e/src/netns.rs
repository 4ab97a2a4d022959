//! The state of the workstation's network, to be compared before and after.

use std::{collections::BTreeSet, fmt::Write as _, process::Command, time::Duration};

use serde_json::Value;

use crate::{cluster::testbed, process::eventually};

/// Kernel names of a session's maps.
const OUR_MAPS: [&str; 6] = [
    "ALIASES",
    "ALIAS_TABLE",
    "COUNTERS",
    "HEARTBEAT",
    "NAME_SERVERS",
    "STEER4",
];

/// The machine must be restored within this time, whatever process has died.
pub const AS_BEFORE: Duration = Duration::from_secs(1);

/// Everything that connecting could leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    links: String,
    addresses: String,
    routes: String,
    rules: String,
    nftables: String,
    resolv_conf: String,
    /// Numbers of namespaces that this one has links to.
    namespaces: BTreeSet<String>,
    /// Links of eBPF programs on this machine, by id.
    bpf_links: BTreeSet<u64>,
    /// Our programs and maps, by id.
    bpf_objects: BTreeSet<(&'static str, u64)>,
}

impl Snapshot {
    pub fn take() -> Self {
        Self {
            links: without_counters(&inside(&["ip", "-o", "link"])),
            addresses: inside(&["ip", "-o", "address"]),
            routes: inside(&["ip", "route", "show", "table", "all"]),
            rules: inside(&["ip", "rule"]),
            nftables: inside(&["nft", "list", "ruleset"]),
            resolv_conf: std::fs::read_to_string(testbed().resolv_conf())
                .expect("the testbed has a resolv.conf"),
            namespaces: inside(&["ip", "netns", "list-id"])
                .lines()
                .map(str::to_owned)
                .collect(),
            bpf_links: ids("link", |_| true),
            bpf_objects: ours("prog")
                .into_iter()
                .map(|id| ("program", id))
                .chain(ours("map").into_iter().map(|id| ("map", id)))
                .collect(),
        }
    }

    /// The differences to `before`; empty if there are none. Ignores removed eBPF links, which
    /// belong to others, and removed namespace numbers, which the kernel releases late.
    pub fn differences(&self, before: &Self) -> String {
        let mut text = String::new();
        for (what, now, then) in [
            ("links", &self.links, &before.links),
            ("addresses", &self.addresses, &before.addresses),
            ("routes", &self.routes, &before.routes),
            ("rules", &self.rules, &before.rules),
            ("nftables", &self.nftables, &before.nftables),
            ("resolv.conf", &self.resolv_conf, &before.resolv_conf),
        ] {
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            let (now, then) = (lines(now), lines(then));
            for line in now.difference(&then) {
                let _ = writeln!(text, "{what}: new: {line}");
            }
            for line in then.difference(&now) {
                let _ = writeln!(text, "{what}: gone: {line}");
            }
        }
        for id in self.namespaces.difference(&before.namespaces) {
            let _ = writeln!(text, "namespaces: new: {id}");
        }
        for id in self.bpf_links.difference(&before.bpf_links) {
            let _ = writeln!(text, "eBPF link {id} is new");
        }
        for (what, id) in self.bpf_objects.difference(&before.bpf_objects) {
            let _ = writeln!(text, "eBPF {what} {id} is new");
        }
        text
    }

    /// Fails the test unless the machine equals this snapshot within a second.
    #[track_caller]
    pub fn assert_restored(&self) {
        eventually("the machine to be as before", AS_BEFORE, || {
            let differences = Self::take().differences(self);
            if differences.is_empty() {
                Ok(())
            } else {
                Err(differences)
            }
        });
    }
}

/// A snapshot of a workstation without any session.
///
/// Sessions of an earlier test program may still be ending.
#[track_caller]
pub fn idle() -> Snapshot {
    eventually(
        "the workstation to be without sessions",
        Duration::from_secs(20),
        || {
            let snapshot = Snapshot::take();
            let links = snapshot.links.lines().count();
            if links == 2 {
                Ok(snapshot)
            } else {
                Err(format!("links:\n{}", snapshot.links))
            }
        },
    )
}

/// The output of a command in the workstation's network namespace.
#[track_caller]
fn inside(command: &[&str]) -> String {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", testbed().workstation()))
        .args(command)
        .output()
        .expect("nsenter starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Removes counters and the index of a link's other end, which does not matter.
fn without_counters(links: &str) -> String {
    links
        .lines()
        .map(|line| {
            line.split_once(": ")
                .map_or(line, |(_, rest)| rest)
                .trim_end()
        })
        .fold(String::new(), |text, line| text + line + "\n")
}

/// Ids of eBPF objects of a kind ("prog", "map") with one of our names.
fn ours(kind: &str) -> BTreeSet<u64> {
    ids(kind, |object| {
        let name = object["name"].as_str().unwrap_or_default();
        name.starts_with("tp_") || OUR_MAPS.contains(&name)
    })
}

fn ids(kind: &str, is_wanted: impl Fn(&Value) -> bool) -> BTreeSet<u64> {
    let output = Command::new("bpftool")
        .args(["-j", kind, "list"])
        .output()
        .expect("bpftool starts");
    assert!(output.status.success(), "bpftool: {output:?}");
    let list: Value = serde_json::from_slice(&output.stdout).expect("bpftool prints JSON");
    list.as_array()
        .expect("bpftool prints a list")
        .iter()
        .filter(|object| is_wanted(object))
        .filter_map(|object| object["id"].as_u64())
        .collect()
}

//! The state of a machine, to be compared with an earlier one.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::Value;

use super::Machine;

/// Everything that a bundle could leave behind.
#[derive(Clone, Debug)]
pub struct Snapshot {
    network: [String; 5],
    programs: BTreeSet<u64>,
    namespaces: String,
}

impl Snapshot {
    #[track_caller]
    pub(super) fn take(machine: &Machine) -> Self {
        let show = |words: &[&str]| {
            let output = machine
                .command(words)
                .output()
                .expect("the tools are installed");
            assert!(output.status.success(), "{words:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };

        Self {
            network: [
                show(&["ip", "-o", "link"]),
                show(&["ip", "-o", "address"]),
                show(&["ip", "route", "show", "table", "all"]),
                show(&["ip", "rule"]),
                show(&["nft", "list", "ruleset"]),
            ],
            programs: our_programs(&show(&["bpftool", "-j", "prog", "list"])),
            namespaces: show(&["ip", "netns", "list-id"]),
        }
    }

    pub fn differences(&self, before: &Self) -> String {
        let mut text = String::new();
        for (now, then) in self.network.iter().zip(&before.network) {
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            for line in lines(now).symmetric_difference(&lines(then)) {
                let _ = writeln!(text, "{line}");
            }
        }
        for id in self.programs.difference(&before.programs) {
            let _ = writeln!(text, "program {id}");
        }
        if self.namespaces != before.namespaces {
            let _ = writeln!(text, "namespaces {}", self.namespaces);
        }
        text
    }

    /// Returns whether programs of ours are loaded.
    pub fn has_programs(&self) -> bool {
        !self.programs.is_empty()
    }
}

/// Programs of ours, whoever loaded them.
fn our_programs(list: &str) -> BTreeSet<u64> {
    let list: Value = serde_json::from_str(list).expect("bpftool prints JSON");
    list.as_array()
        .expect("bpftool prints a list")
        .iter()
        .filter(|program| {
            program["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("tp_"))
        })
        .filter_map(|program| program["id"].as_u64())
        .collect()
}

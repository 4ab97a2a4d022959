//! Rules of a packet filter, for what does not answer.

use std::process::Command;

use crate::process::{PATIENCE, run};

/// A rule in one or more places; undone when dropped.
#[derive(Debug)]
pub struct Rule {
    /// What runs a command there.
    places: Vec<Vec<String>>,
    table: &'static str,
    chain: &'static str,
    words: Vec<String>,
}

impl Rule {
    /// `words` follow the chain's name in the command of iptables.
    #[must_use = "the rule ends with the guard"]
    #[track_caller]
    pub fn insert(
        places: impl IntoIterator<Item = Vec<String>>,
        [table, chain]: [&'static str; 2],
        words: &[&str],
    ) -> Self {
        let rule = Self {
            places: places.into_iter().collect(),
            table,
            chain,
            words: words.iter().map(|&word| word.to_owned()).collect(),
        };
        for place in &rule.places {
            run(&mut rule.command(place, "-I"), PATIENCE).expect_success();
        }

        rule
    }

    fn command(&self, place: &[String], action: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(place)
            .args(["iptables", "-w", "-t", self.table, action, self.chain])
            .args(&self.words);

        command
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        for place in &self.places {
            run(&mut self.command(place, "-D"), PATIENCE);
        }
    }
}

/// The network namespace of this name.
pub fn named(namespace: &str) -> Vec<String> {
    vec![format!("--net=/run/netns/{namespace}")]
}

/// That of a process.
pub fn of_process(pid: u32) -> Vec<String> {
    vec![format!("--net=/proc/{pid}/ns/net")]
}

//! Rules of a packet filter, to silence addresses.

use std::process::Command;

use crate::process::{PATIENCE, run};

/// A rule in one or more network namespaces; removed when dropped.
#[derive(Debug)]
pub struct Rule {
    /// Command prefixes, one for each namespace.
    prefixes: Vec<Vec<String>>,
    table: &'static str,
    chain: &'static str,
    words: Vec<String>,
}

impl Rule {
    /// `words` follow the chain's name in the iptables command.
    #[must_use = "the rule ends with the guard"]
    #[track_caller]
    pub fn insert(
        prefixes: impl IntoIterator<Item = Vec<String>>,
        [table, chain]: [&'static str; 2],
        words: &[&str],
    ) -> Self {
        let rule = Self {
            prefixes: prefixes.into_iter().collect(),
            table,
            chain,
            words: words.iter().map(|&word| word.to_owned()).collect(),
        };
        for prefix in &rule.prefixes {
            run(&mut rule.command(prefix, "-I"), PATIENCE).expect_success();
        }

        rule
    }

    fn command(&self, prefix: &[String], action: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(prefix)
            .args(["iptables", "-w", "-t", self.table, action, self.chain])
            .args(&self.words);

        command
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        for prefix in &self.prefixes {
            run(&mut self.command(prefix, "-D"), PATIENCE);
        }
    }
}

/// The prefix for the network namespace of this name.
pub fn named(namespace: &str) -> Vec<String> {
    vec![format!("--net=/run/netns/{namespace}")]
}

/// The prefix for the network namespace of a process.
pub fn of_process(pid: u32) -> Vec<String> {
    vec![format!("--net=/proc/{pid}/ns/net")]
}

//! Packages that a crate must not reach, even indirectly: the resolved tree of dependencies.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use super::Problem;
use crate::run;

/// The platform of the shipped programs.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Packages that a crate must not reach, with the features of the whole workspace, since that is
/// what is built. A star at the end matches any suffix.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    ("tp-agent", &["tp-ipc", "tp-root-api"]),
    (
        "tp-agentd",
        &[
            "aws-lc*",
            "axum*",
            "h2",
            "http*",
            "hyper*",
            "kube*",
            "native-tls",
            "openssl*",
            "prost*",
            "quinn*",
            "regex*",
            "reqwest",
            "ring",
            "rustls*",
            "serde_norway",
            "tokio*",
            "tonic*",
            "tp-core",
            "tp-ipc",
            "tp-kube",
            "tp-proto",
            "tp-root-api",
            "tp-session",
            "tp-transport",
            "tungstenite",
        ],
    ),
    (
        "tp-cli",
        &[
            "aya*",
            "quinn*",
            "rtnetlink",
            "tp-ebpf-*",
            "tp-session",
            "tp-transport",
        ],
    ),
    (
        "tp-core",
        &["kube*", "mio", "quinn*", "socket2", "tokio*", "tonic*"],
    ),
    (
        "tp-daemon",
        &[
            "aws-lc*",
            "axum*",
            "h2",
            "http*",
            "hyper*",
            "kube*",
            "native-tls",
            "openssl*",
            "prost*",
            "quinn*",
            "reqwest",
            "ring",
            "rustls*",
            "serde_norway",
            "tonic*",
            "tp-ipc",
            "tp-kube",
            "tp-proto",
            "tp-session",
            "tp-transport",
            "tungstenite",
        ],
    ),
    (
        "tp-manager",
        &["aya*", "tp-ebpf-*", "tp-ipc", "tp-root-api"],
    ),
    (
        "tp-root-api",
        &["kube*", "mio", "prost*", "tokio*", "tonic*"],
    ),
    ("tp-session", &["aya*", "tp-ebpf-*"]),
];

/// Normal dependencies of each package, by name. Two versions of a package count as one with the
/// dependencies of both.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

impl Tree {
    /// Asks `cargo tree`: `cargo metadata` also lists dependencies that no feature enables
    /// (`ring?/std`).
    pub(super) fn of(root: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let text = run::output(command.current_dir(root).args([
            "tree",
            "--workspace",
            "--offline",
            "--edges=normal",
            "--prefix=depth",
            "--target",
            PLATFORM,
        ]))?;

        Self::parse(&text).context("reading the answer of cargo tree")
    }

    /// Parses lines such as "2serde v1.0.229 (*)": the depth below a member, and the package. A
    /// star replaces the subtree of a package listed before.
    fn parse(text: &str) -> Option<Self> {
        let mut tree = Self::default();
        let mut above: Vec<&str> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let name = line.trim_start_matches(|character: char| character.is_ascii_digit());
            let depth: usize = line[..line.len() - name.len()].parse().ok()?;
            let name = name.split(' ').next()?;
            above.truncate(depth);
            if let Some(parent) = above.last() {
                let below = tree.dependencies.entry((*parent).to_owned());
                below.or_default().insert(name.to_owned());
            }
            tree.dependencies.entry(name.to_owned()).or_default();
            above.push(name);
        }

        Some(tree)
    }

    /// All packages that a member reaches, each with a shortest path.
    fn ways_from<'a>(&'a self, member: &'a str) -> BTreeMap<&'a str, Vec<&'a str>> {
        let mut ways = BTreeMap::from([(member, vec![member])]);
        let mut pending = VecDeque::from([member]);
        while let Some(package) = pending.pop_front() {
            for next in self.dependencies.get(package).into_iter().flatten() {
                if !ways.contains_key(next.as_str()) {
                    let way = ways[package].iter().copied().chain([next.as_str()]);
                    let way = way.collect();
                    ways.insert(next, way);
                    pending.push_back(next);
                }
            }
        }

        ways
    }
}

/// Compares the reached packages with the forbidden ones.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, forbidden) in FORBIDDEN {
        if !tree.dependencies.contains_key(name) {
            problems.push(format!("{name} is no crate of the workspace"));
        }
        for (package, way) in tree.ways_from(name) {
            if forbidden.iter().any(|pattern| matches(pattern, package)) {
                let way = way.join(" -> ");
                problems.push(format!("{name} must not reach {package}: {way}"));
            }
        }
    }

    problems
}

fn matches(pattern: &str, package: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => package.starts_with(start),
        None => package == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of these lines and of all members with forbidden packages.
    fn tree(text: &str) -> Tree {
        let members = FORBIDDEN.map(|(name, _)| format!("0{name} v0.1.0 (/src)\n"));

        Tree::parse(&format!("{text}\n{}", members.concat())).unwrap()
    }

    #[test]
    fn a_crate_does_not_reach_what_it_must_not_by_any_way() {
        let innocent = "0x v1.0.0\n1c v1.0.0\n2b v1.0.0\n3tp-ebpf-loader v0.1.0\n";
        let guilty = "\n0tp-manager v0.1.0 (/src)\n1a v1.0.0\n2b v1.0.0 (*)\n1d v1.0.0\n";

        assert_eq!(check(&tree(innocent)), [""; 0]);
        assert_eq!(
            check(&tree(&format!("{innocent}{guilty}"))),
            ["tp-manager must not reach tp-ebpf-loader: tp-manager -> a -> b -> tp-ebpf-loader"]
        );
    }

    #[test]
    fn a_crate_that_must_not_reach_something_is_one_of_ours() {
        assert_eq!(check(&Tree::default()).len(), FORBIDDEN.len());
    }

    #[test]
    fn a_star_stands_for_any_rest() {
        assert!(matches("quinn*", "quinn") && matches("quinn*", "quinn-proto"));
        assert!(matches("quinn", "quinn") && !matches("quinn", "quinn-proto"));
    }
}

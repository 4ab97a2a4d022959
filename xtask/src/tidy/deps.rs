//! Who may depend on whom, directly and by way of others.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{Problem, Source};
use crate::run;

/// Our crates, and which of ours each may use. An edge that is not here is forbidden.
const EDGES: [(&str, &[&str]); 16] = [
    (
        "tp-agent",
        &["tp-core", "tp-proto", "tp-transport", "tp-ebpf-loader"],
    ),
    (
        "tp-cli",
        &[
            "tp-core",
            "tp-ipc",
            "tp-kube",
            "tp-process",
            "tp-proto",
            "tp-root-api",
        ],
    ),
    ("tp-core", &[]),
    (
        "tp-daemon",
        &["tp-core", "tp-ebpf-loader", "tp-process", "tp-root-api"],
    ),
    (
        "tp-e2e",
        &[
            "tp-core",
            "tp-proto",
            "tp-root-api",
            "tp-session",
            "tp-transport",
        ],
    ),
    ("tp-ebpf-common", &[]),
    ("tp-ebpf-loader", &["tp-ebpf-common"]),
    ("tp-ipc", &["tp-process"]),
    ("tp-kube", &["tp-proto"]),
    (
        "tp-manager",
        &["tp-core", "tp-process", "tp-proto", "tp-transport"],
    ),
    ("tp-process", &[]),
    ("tp-proto", &["tp-core"]),
    ("tp-root-api", &["tp-core"]),
    (
        "tp-session",
        &[
            "tp-core",
            "tp-ipc",
            "tp-kube",
            "tp-process",
            "tp-proto",
            "tp-root-api",
            "tp-transport",
        ],
    ),
    ("tp-transport", &["tp-core", "tp-proto"]),
    ("xtask", &[]),
];

/// Packages that have one home.
const HOMES: [(&str, &[&str]); 10] = [
    (
        "anyhow",
        &[
            "tp-agent",
            "tp-cli",
            "tp-daemon",
            "tp-e2e",
            "tp-manager",
            "tp-session",
            "xtask",
        ],
    ),
    ("aya", &["tp-ebpf-common", "tp-ebpf-loader"]),
    ("aya-log", &["tp-ebpf-loader"]),
    (
        "clap",
        &[
            "tp-agent",
            "tp-cli",
            "tp-daemon",
            "tp-manager",
            "tp-session",
            "xtask",
        ],
    ),
    ("hickory-proto", &["tp-core", "tp-e2e"]),
    (
        "kube",
        &["tp-cli", "tp-kube", "tp-manager", "tp-proto", "tp-session"],
    ),
    ("quinn", &["tp-transport"]),
    ("rtnetlink", &["tp-daemon", "tp-session"]),
    ("rustls", &["tp-kube", "tp-transport"]),
    (
        "tokio",
        &[
            "tp-agent",
            "tp-cli",
            "tp-daemon",
            "tp-e2e",
            "tp-kube",
            "tp-ipc",
            "tp-manager",
            "tp-session",
            "tp-transport",
            "tp-ebpf-loader",
        ],
    ),
];

/// All that the pure crate may use. None of them does I/O or reads a clock.
const PURE: (&str, &[&str]) = (
    "tp-core",
    &["bytes", "etherparse", "hickory-proto", "ipnet", "thiserror"],
);

/// What a crate must not reach by any way, with the features of the whole workspace, since that is
/// what is built. A star at the end stands for any rest.
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("tp-cli", &["aya*", "rtnetlink", "tp-ebpf-*", "tp-session"]),
    (
        "tp-core",
        &["kube*", "mio", "quinn*", "socket2", "tokio*", "tonic*"],
    ),
    ("tp-manager", &["aya*", "tp-ebpf-*"]),
    ("tp-session", &["aya*", "tp-ebpf-*"]),
];
/// What is built and shipped runs here.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Modules that must not know each other: folder, and what its files must not name.
const STRANGERS: [(&str, &str); 2] = [
    ("tp-manager/src/index", "crate::grpc"),
    ("tp-manager/src/grpc", "crate::index"),
];

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None`: a normal one.
    kind: Option<String>,
}

/// What Cargo chose for the dependencies.
#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `None`: a normal one.
    kind: Option<String>,
}

pub(super) fn metadata(root: &Path) -> Result<Metadata> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let text = run::output(command.current_dir(root).args([
        "metadata",
        "--offline",
        "--format-version=1",
        "--filter-platform",
        PLATFORM,
    ]))?;

    serde_json::from_str(&text).context("reading the answer of cargo metadata")
}

pub(super) fn check(metadata: &Metadata) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_member = |package: &&Package| metadata.workspace_members.contains(&package.id);
    for package in metadata.packages.iter().filter(is_member) {
        let name = package.name.as_str();
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            problems.push(format!(
                "{name}: not in the table of crates (xtask/src/tidy/deps.rs)"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let on = dependency.name.as_str();
            let is_ours = EDGES.iter().any(|(from, _)| *from == on);
            let is_dev = dependency.kind.as_deref() == Some("dev");
            if is_ours && on != name && !allowed.contains(&on) {
                problems.push(format!("{name} must not depend on {on}"));
            }
            if name == PURE.0 && !is_dev && !PURE.1.contains(&on) {
                problems.push(format!("{name} is pure and must not depend on {on}"));
            }
            let home = HOMES.iter().find(|(package, _)| *package == on);
            if !is_dev
                && let Some((_, homes)) = home
                && !homes.contains(&name)
            {
                problems.push(format!("{on} has a home, which is not {name}"));
            }
        }
    }

    problems
}

/// Compares what crates reach with what they must not reach.
pub(super) fn check_reach(metadata: &Metadata) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, forbidden) in FORBIDDEN {
        let Some(ways) = ways_from(metadata, name) else {
            problems.push(format!("{name} is no crate of the workspace"));
            continue;
        };
        for (package, way) in ways {
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

/// All packages that a member reaches through normal dependencies, each with a shortest way to it.
fn ways_from<'a>(metadata: &'a Metadata, member: &str) -> Option<BTreeMap<&'a str, Vec<&'a str>>> {
    let names: BTreeMap<&str, &str> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package.name.as_str()))
        .collect();
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let id = metadata
        .workspace_members
        .iter()
        .map(String::as_str)
        .find(|id| names.get(id) == Some(&member))?;

    let mut ways = BTreeMap::from([(id, vec![names[id]])]);
    let mut pending = VecDeque::from([id]);
    while let Some(id) = pending.pop_front() {
        let edges = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        for edge in edges.filter(|edge| edge.dep_kinds.iter().any(|it| it.kind.is_none())) {
            let next = edge.pkg.as_str();
            if !ways.contains_key(next) {
                let name = names.get(next).copied().unwrap_or(next);
                let way = ways[id].iter().copied().chain([name]).collect();
                ways.insert(next, way);
                pending.push_back(next);
            }
        }
    }

    let mut by_name = BTreeMap::new();
    for way in ways.into_values() {
        by_name.insert(way[way.len() - 1], way);
    }
    Some(by_name)
}

pub(super) fn check_imports(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (folder, stranger) in STRANGERS {
        let module = format!("{folder}.rs");
        let inside = sources
            .iter()
            .filter(|source| source.path.starts_with(folder) || source.path == Path::new(&module));
        for source in inside {
            for line in source.lines() {
                if line.code().contains(stranger) {
                    let at = source.at(line.number);
                    problems.push(format!("{at}: {folder} must not know {stranger}"));
                }
            }
        }
    }

    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, on: &str, kind: Option<&str>) -> Metadata {
        let dependency = Dependency {
            name: on.into(),
            kind: kind.map(Into::into),
        };

        Metadata {
            packages: vec![Package {
                id: name.into(),
                name: name.into(),
                dependencies: vec![dependency],
            }],
            workspace_members: vec![name.into()],
            resolve: Resolve { nodes: Vec::new() },
        }
    }

    /// All members that must not reach something, and edges of a kind.
    fn tree(edges: &[(&str, &str, Option<&str>)]) -> Metadata {
        let mut names: Vec<&str> = FORBIDDEN.iter().map(|(name, _)| *name).collect();
        let workspace_members = names.iter().map(|&name| name.into()).collect();
        names.extend(edges.iter().flat_map(|(from, to, _)| [from, to]));
        let package = |&name: &&str| Package {
            id: name.into(),
            name: name.into(),
            dependencies: Vec::new(),
        };
        let edge = |&(_, to, kind): &(&str, &str, Option<&str>)| Edge {
            pkg: to.into(),
            dep_kinds: vec![Kind {
                kind: kind.map(Into::into),
            }],
        };
        let node = |&name: &&str| Node {
            id: name.into(),
            deps: edges.iter().filter(|it| it.0 == name).map(edge).collect(),
        };

        Metadata {
            packages: names.iter().map(package).collect(),
            workspace_members,
            resolve: Resolve {
                nodes: names.iter().map(node).collect(),
            },
        }
    }

    #[test]
    fn edges_go_down_only() {
        assert_eq!(check(&package("tp-proto", "tp-core", None)), [""; 0]);
        assert_eq!(
            check(&package("tp-core", "tp-proto", None))
                .first()
                .unwrap(),
            "tp-core must not depend on tp-proto"
        );
        assert_eq!(check(&package("tp-manager", "tp-daemon", None)).len(), 1);
    }

    #[test]
    fn the_pure_crate_stays_pure() {
        assert_eq!(check(&package("tp-core", "bytes", None)), [""; 0]);
        assert_eq!(check(&package("tp-core", "rand", None)).len(), 1);
        assert_eq!(check(&package("tp-core", "rand", Some("dev"))), [""; 0]);
    }

    #[test]
    fn a_package_has_one_home() {
        assert_eq!(
            check(&package("tp-manager", "quinn", None)),
            ["quinn has a home, which is not tp-manager"]
        );
    }

    #[test]
    fn a_crate_does_not_reach_what_it_must_not_by_any_way() {
        let edges = [
            ("tp-manager", "a", None),
            ("a", "b", None),
            ("b", "tp-ebpf-loader", None),
            ("b", "aya-obj", Some("build")),
        ];

        assert_eq!(
            check_reach(&tree(&edges)),
            ["tp-manager must not reach tp-ebpf-loader: tp-manager -> a -> b -> tp-ebpf-loader"]
        );
        assert!(check_reach(&tree(&edges[..2])).is_empty());
    }

    #[test]
    fn a_crate_that_must_not_reach_something_is_one_of_ours() {
        let mut tree = tree(&[]);
        tree.workspace_members.remove(0);

        assert_eq!(check_reach(&tree).len(), 1);
    }

    #[test]
    fn a_star_stands_for_any_rest() {
        assert!(matches("quinn*", "quinn") && matches("quinn*", "quinn-proto"));
        assert!(matches("quinn", "quinn") && !matches("quinn", "quinn-proto"));
    }

    #[test]
    fn the_command_line_tool_does_not_carry_the_tunnel() {
        assert_eq!(check(&package("tp-cli", "tp-transport", None)).len(), 1);
    }

    #[test]
    fn the_root_daemon_does_not_know_the_session() {
        assert_eq!(check(&package("tp-daemon", "tp-session", None)).len(), 1);
    }

    #[test]
    fn modules_that_must_not_know_each_other_are_told_apart() {
        let source = Source::new("tp-manager/src/index/a.rs", "use crate::grpc::X;\n");

        assert_eq!(check_imports(&[source]).len(), 1);
    }
}

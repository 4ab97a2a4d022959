//! Allowed dependencies between crates.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{Problem, Source};
use crate::run;

/// Our crates, each with those of ours that it may use. Other edges are forbidden.
const EDGES: [(&str, &[&str]); 20] = [
    (
        "tp-agent",
        &[
            "tp-agent-api",
            "tp-core",
            "tp-packet",
            "tp-process",
            "tp-proto",
            "tp-transport",
        ],
    ),
    ("tp-agent-api", &["tp-packet"]),
    (
        "tp-agentd",
        &[
            "tp-agent-api",
            "tp-ebpf-loader",
            "tp-packet",
            "tp-sock-diag",
        ],
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
        &[
            "tp-core",
            "tp-ebpf-loader",
            "tp-process",
            "tp-root-api",
            "tp-sock-diag",
        ],
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
    ("tp-kube", &["tp-process", "tp-proto"]),
    (
        "tp-manager",
        &["tp-core", "tp-process", "tp-proto", "tp-transport"],
    ),
    ("tp-packet", &[]),
    ("tp-process", &[]),
    ("tp-proto", &["tp-core"]),
    ("tp-root-api", &["tp-packet"]),
    (
        "tp-session",
        &[
            "tp-core",
            "tp-ipc",
            "tp-kube",
            "tp-process",
            "tp-proto",
            "tp-root-api",
            "tp-sock-diag",
            "tp-transport",
        ],
    ),
    ("tp-sock-diag", &[]),
    ("tp-transport", &["tp-core", "tp-process", "tp-proto"]),
    ("xtask", &[]),
];

/// Packages that only certain crates may use.
const HOMES: [(&str, &[&str]); 10] = [
    (
        "anyhow",
        &[
            "tp-agent",
            "tp-agentd",
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
            "tp-agentd",
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
        &[
            "tp-agent",
            "tp-cli",
            "tp-kube",
            "tp-manager",
            "tp-proto",
            "tp-session",
        ],
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

/// The packages that the pure crate may use. They do no I/O and read no clock.
const PURE: (&str, &[&str]) = (
    "tp-core",
    &["bytes", "etherparse", "hickory-proto", "ipnet", "thiserror"],
);

/// Modules that must not know each other: a folder, and the name that its files must not mention.
const STRANGERS: [(&str, &str); 4] = [
    ("tp-manager/src/index", "grpc::"),
    ("tp-manager/src/grpc", "index::"),
    ("tp-session/src/dns", "datapath::"),
    ("tp-session/src/dns", "relay::"),
];

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency.
    kind: Option<String>,
}

pub(super) fn metadata(root: &Path) -> Result<Metadata> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let text = run::output(command.current_dir(root).args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version=1",
    ]))?;

    serde_json::from_str(&text).context("reading the answer of cargo metadata")
}

pub(super) fn check(metadata: &Metadata) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &metadata.packages {
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
                name: name.into(),
                dependencies: vec![dependency],
            }],
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
    fn the_command_line_tool_does_not_carry_the_tunnel() {
        assert_eq!(check(&package("tp-cli", "tp-transport", None)).len(), 1);
    }

    #[test]
    fn the_root_daemon_does_not_know_the_session() {
        assert_eq!(check(&package("tp-daemon", "tp-session", None)).len(), 1);
    }

    #[test]
    fn modules_that_must_not_know_each_other_are_told_apart() {
        let source = Source::new(
            "tp-manager/src/index/a.rs",
            "use crate::{\n    grpc::X,\n};\n",
        );

        assert_eq!(check_imports(&[source]).len(), 1);
    }
}

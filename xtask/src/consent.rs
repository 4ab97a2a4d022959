//! Lists what a command installs and builds on this machine, and asks once.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};

use crate::{cluster, ebpf, packages, paths, run, tools::DENY};

/// The cluster that a command uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kubernetes {
    /// A cluster on this machine, for the command.
    Own,
    /// The user's cluster.
    Foreign,
    /// None.
    Absent,
}

/// Lists what will be installed and built, and asks once.
pub(crate) fn consent(command: &str, kubernetes: Kubernetes, yes: bool) -> Result<()> {
    if kubernetes == Kubernetes::Own && !run::is_root() {
        bail!("the test cluster makes namespaces and control groups: run this as root");
    }
    announce(command, kubernetes)?;
    if yes || std::env::var("CI").is_ok_and(|value| value == "true" || value == "1") {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to ask: pass --yes to agree");
    }
    print!("Go on? [Y/n] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("reading the answer")?;
    match answer.trim().to_lowercase().as_str() {
        "" | "y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

fn announce(command: &str, kubernetes: Kubernetes) -> Result<()> {
    let lists = needed(command, kubernetes);
    let missing = packages::missing(&lists)?;
    let mut minutes = match command {
        "soak" => 15,
        "test" => 32,
        "test families" => 6,
        "test vm" => 45,
        _ => 1,
    };
    println!("`cargo xtask {command}` on this machine:");
    if missing.is_empty() {
        println!("  packages   all {} are installed", packages::count(&lists));
    } else {
        println!(
            "  packages   to install with apt-get: {}",
            missing.join(" ")
        );
        minutes += 4;
    }
    if ebpf::linker_is_missing() {
        println!("  toolchain  to build once: the linker for eBPF (about a minute)");
        minutes += 1;
    }
    if command == "test" && DENY.find().is_none() {
        println!("  tools      to build once: cargo-deny (about 4 minutes)");
        minutes += 4;
    }
    if !paths::release().join("tp-daemon").exists() {
        let compiling = if command.starts_with("test") { 10 } else { 5 };
        println!("  tp         to compile (about {compiling} minutes)");
        minutes += compiling;
    }
    if kubernetes == Kubernetes::Own {
        if cluster::build::is_needed()? {
            let version = cluster::build::KUBERNETES;
            println!("  cluster    to compile once: Kubernetes {version} (about 7 minutes)");
            minutes += 7;
        }
        println!(
            "  cluster    namespaces and control groups named tpt-*, files in {}; removed by `cargo xtask cluster down`",
            paths::testbed().display()
        );
    }
    if command.starts_with("test") {
        println!("  kernels    to download if Debian has newer ones (each about 100 MB)");
    }
    println!(
        "  caches     {} and {}",
        paths::cache().display(),
        paths::target().display()
    );
    println!("  about {minutes} min on two cores; ~/.kube is not touched");
    Ok(())
}

/// The packages that a command needs.
pub(crate) fn needed(command: &str, kubernetes: Kubernetes) -> Vec<&'static [&'static str]> {
    let mut lists = vec![packages::BUILD, ebpf::packages()];
    match kubernetes {
        Kubernetes::Own => {
            lists.extend([packages::CLUSTER, packages::CLIENTS, ebpf::lint_packages()]);
        }
        Kubernetes::Absent => lists.extend([packages::CLUSTER, packages::DATA_PATH]),
        Kubernetes::Foreign => {}
    }
    if command.starts_with("test") {
        lists.push(packages::VIRTUAL_MACHINES);
    }

    lists
}

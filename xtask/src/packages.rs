//! All Debian packages that building, testing and the test cluster need.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// A compiler for the eBPF programs: see `ebpf.rs`.
pub(crate) const BPF: &[&str] = &[
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "rust-web-src",
    "rustc-web",
];

/// The lints of that compiler.
pub(crate) const BPF_LINTS: &[&str] = &["rust-web-clippy"];

/// Programs that Cargo, `cargo install` and cgo call.
pub(crate) const BUILD: &[&str] = &[
    "binutils",
    "ca-certificates",
    "g++",
    "gcc",
    "git",
    "libc6-dev",
    "make",
];

/// Programs of the nodes and the workstation of the test cluster.
pub(crate) const CLUSTER: &[&str] = &[
    "bpftool",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "iproute2",
    "iptables",
    "mount",
    "nftables",
    "procps",
    "runc",
    "util-linux",
];

/// Programs that tests use like a user at the workstation.
pub(crate) const CLIENTS: &[&str] = &[
    "amqp-tools",
    "curl",
    "bind9-dnsutils",
    "default-jdk-headless",
    "mariadb-client",
    "nodejs",
    "openssl",
    "postgresql-client",
    "python3",
    "sudo",
];

/// Programs that the tests of the data path use, beside those of [`CLUSTER`].
pub(crate) const DATA_PATH: &[&str] = &["python3"];

/// Programs that make and run virtual machines.
pub(crate) const VIRTUAL_MACHINES: &[&str] = &["busybox-static", "kmod", "qemu-system-x86"];

/// The packages of `lists` that are not installed, in alphabetical order.
pub(crate) fn missing(lists: &[&[&'static str]]) -> Result<Vec<&'static str>> {
    let wanted: BTreeSet<&str> = lists.iter().flat_map(|list| list.iter().copied()).collect();
    let mut absent = Vec::new();

    for package in wanted {
        let status = Command::new("dpkg")
            .args(["-s", package])
            .output()
            .context("dpkg does not start: this command is for Debian and its relatives")?;
        let installed = String::from_utf8_lossy(&status.stdout)
            .lines()
            .any(|line| line == "Status: install ok installed");
        if !installed {
            absent.push(package);
        }
    }

    Ok(absent)
}

/// The number of packages in the lists.
pub(crate) fn count(lists: &[&[&str]]) -> usize {
    lists
        .iter()
        .copied()
        .flatten()
        .collect::<BTreeSet<_>>()
        .len()
}

/// Installs `packages` with apt-get, which needs root.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !run::is_root() {
        bail!(
            "these packages are missing: run `sudo apt-get install --no-install-recommends {}`",
            packages.join(" ")
        );
    }

    println!("installing {}", packages.join(" "));
    let apt = |arguments: &[&str]| {
        run::logged(
            "apt-get",
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-o", "DPkg::Lock::Timeout=300", "-q", "-y"])
                .args(arguments),
        )
    };
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"], packages].concat())
}

/// Installs the missing packages of `lists`.
pub(crate) fn ensure(lists: &[&[&'static str]]) -> Result<()> {
    install(&missing(lists)?)
}

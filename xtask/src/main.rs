//! Builds, tests, demonstrates and packages tp: `cargo xtask --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod cluster;
mod ebpf;
mod image;
mod packages;
mod paths;
mod run;
mod tidy;
mod tools;

#[derive(Parser)]
#[command(name = "cargo xtask", about, version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF programs to target/bpf/tp-ebpf.o, and the toolchain for them if it is missing
    Ebpf,
    /// Drive the test cluster: a Kubernetes with several nodes and a workstation, on this machine
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Check the rules of this workspace that no other tool checks
    Tidy,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Cluster(action) => cluster::perform(action),
        Task::Ebpf => ebpf::build(),
        Task::Tidy => tidy::run(),
    }
}

//! Builds, tests, demonstrates and packages tp: `cargo xtask --help`.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};

mod ebpf;
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
    /// Check the rules of this workspace that no other tool checks
    Tidy,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Ebpf => ebpf::build(),
        Task::Tidy => tidy::run(),
    }
}

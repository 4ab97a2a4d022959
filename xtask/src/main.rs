//! Builds, tests, demonstrates and packages tp: `cargo xtask --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod cluster;
mod consent;
mod demo;
mod dist;
mod ebpf;
mod image;
mod notices;
mod packages;
mod paths;
mod products;
mod run;
mod steps;
mod test;
mod tidy;
mod tools;
mod workloads;
mod wrapper;

#[derive(Parser)]
#[command(name = "cargo xtask", about, version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show tp on a real Kubernetes: bring one up on this machine, install, connect, reach services
    Demo(demo::Options),
    /// Run everything that tests, from formatting to end-to-end tests on a real Kubernetes
    Test(test::Options),
    /// Run the long forms of tests on the test cluster: the same tests with more rounds
    Soak(test::soak::Options),
    /// Compare tp with plain routing and with the port-forward of kubectl, on the test cluster
    Bench(bench::Options),
    /// Build all programs, and statically linked those of the cluster
    Build,
    /// Make a release in target/dist: programs, archive, image, check sums, notices
    Dist,
    /// Build the eBPF programs to target/bpf, and the toolchain for them if it is missing
    Ebpf,
    /// Drive the test cluster: a Kubernetes with several nodes and a workstation, on this machine
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Check the rules of this workspace that no other tool checks
    Tidy,
    /// Look for known security problems of dependencies (downloads the advisory database)
    Audit,
    /// A load of `bench`
    #[command(subcommand, hide = true)]
    Probe(bench::probe::Probe),
}

fn main() -> ExitCode {
    if let Some(compiler) = wrapper::requested() {
        return wrapper::run(compiler);
    }
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
        Task::Audit => test::audit(),
        Task::Bench(options) => bench::bench(&options),
        Task::Build => products::build(),
        Task::Cluster(action) => cluster::perform(action),
        Task::Demo(options) => demo::demo(&options),
        Task::Dist => dist::dist(),
        Task::Ebpf => ebpf::build_and_tell(),
        Task::Probe(probe) => bench::probe::run(&probe),
        Task::Soak(options) => test::soak::soak(&options),
        Task::Test(options) => test::test(&options),
        Task::Tidy => tidy::run(),
    }
}

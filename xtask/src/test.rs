//! All tests with their set-up, in the order in which mistakes should show.

use std::process::Command;

use anyhow::Result;

use crate::{
    bench, cluster,
    consent::{Kubernetes, consent, needed},
    demo, dist, ebpf, packages, paths, products, run,
    steps::Steps,
    tidy,
    tools::DENY,
};
use programs::TestProgram;
use untouched::Untouched;

mod families;
mod programs;
pub(crate) mod soak;
mod untouched;
mod vm;

/// Where to look when a test fails.
const TEST_OUTPUT: &str = "the output of the failed test above";
/// The test programs of tp-agent and tp-agentd that need root, and so are ignored elsewhere.
const REDIRECTS: [&str; 2] = ["node", "redirect"];

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Leave the test cluster up at the end
    #[arg(long)]
    keep: bool,
    /// Only end-to-end tests whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Run the tests of the data path on older kernels, in virtual machines
    Vm(vm::Options),
    /// Install and intercept on clusters without IPv4 and with both families
    Families(families::Options),
}

pub(crate) fn test(options: &Options) -> Result<()> {
    match &options.part {
        Some(Part::Vm(options)) => return vm::run(options),
        Some(Part::Families(options)) => return families::run(options),
        None => {}
    }
    consent("test", Kubernetes::Own, options.yes)?;
    let kube = Untouched::kube()?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed("test", Kubernetes::Own))
    })?;
    if options.only.is_none() {
        static_checks(&mut steps)?;
    }
    steps.step("eBPF programs", "tp-ebpf/", ebpf::build)?;
    if options.only.is_none() {
        lints(&mut steps)?;
    }
    let tests = build(&mut steps)?;
    if options.only.is_none() {
        let unit = tests.iter().filter(|test| !test.is_end_to_end());
        steps.step("unit and scenario tests", TEST_OUTPUT, || {
            programs::run_all(unit, &["--quiet"])
        })?;
        let redirects = tests.iter().filter(|test| REDIRECTS.contains(&test.name()));
        steps.step("redirects in network namespaces", TEST_OUTPUT, || {
            programs::run_all(redirects, &["--quiet", "--ignored"])
        })?;
        steps.step("examples of the documentation", TEST_OUTPUT, || {
            run::status(products::cargo(&["test"])?.args(["--doc", "--quiet"]))
        })?;
    }

    if options.only.is_none() {
        vm::run_subset(&mut steps, &tests)?;
        families::run_all(&mut steps)?;
    }
    let outcome = on_cluster(&mut steps, options, &tests);
    if options.keep {
        println!("the cluster stays up: remove it with `cargo xtask cluster down`");
    } else {
        steps.step(
            "cluster down",
            "`cargo xtask cluster status`",
            cluster::down,
        )?;
    }
    outcome?;
    steps.step(
        "~/.kube is as it was",
        "which test ran kubectl there",
        || kube.check(),
    )?;
    steps.summary();
    Ok(())
}

/// Builds the programs under test, and the tests.
fn build(steps: &mut Steps) -> Result<Vec<TestProgram>> {
    steps.step("programs", "the compiler output above", products::build)?;
    steps.step("distribution", "target/dist", dist::pack)?;
    steps.step("tests built", "the compiler output above", programs::build)
}

fn static_checks(steps: &mut Steps) -> Result<()> {
    steps.step("formatting", "`cargo fmt --all` repairs it", || {
        cargo(&["fmt", "--all", "--check"])?;
        let manifest = paths::workspace().join("tp-ebpf/Cargo.toml");
        run::status(
            run::cargo()
                .args(["fmt", "--check", "--manifest-path"])
                .arg(manifest),
        )
    })?;
    steps.step(
        "tidy",
        "CONTRIBUTING.md, the rules of the workspace",
        tidy::run,
    )
}

fn lints(steps: &mut Steps) -> Result<()> {
    steps.step(
        "clippy",
        "the lints above; [workspace.lints] in Cargo.toml",
        || {
            cargo(&[
                "clippy",
                "--release",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])?;
            ebpf::lint()
        },
    )?;
    steps.step("licences and sources of dependencies", "deny.toml", || {
        let deny = DENY.ensure()?;
        let check = |more: &[&str]| {
            run::status(
                Command::new(&deny)
                    .args(["--log-level", "error", "--locked"])
                    .args(more)
                    .args(["check", "bans", "licenses", "sources"])
                    .current_dir(paths::workspace()),
            )
        };
        check(&[])?;
        check(&["--manifest-path", "tp-ebpf/Cargo.toml"])
    })
}

/// Checks dependencies for known security problems. Apart from the tests: the result depends on the
/// day, and it needs a download.
pub(crate) fn audit() -> Result<()> {
    let deny = DENY.ensure()?;
    run::status(
        Command::new(deny)
            .args(["check", "advisories"])
            .current_dir(paths::workspace()),
    )
}

fn cluster_up(steps: &mut Steps, afresh: bool) -> Result<()> {
    steps.step("cluster up", "the log it names", || {
        if afresh {
            // A cluster left by hand must not affect the tests.
            cluster::down()?;
        }
        cluster::up(2, cluster::Network::Ipv4)
    })?;
    steps.step(
        "workloads",
        "`cargo xtask cluster status`",
        cluster::deploy_workloads,
    )?;
    steps.step("image import", "target/dist/tp-image.tar", || {
        cluster::import(&dist::image())
    })
}

fn on_cluster(steps: &mut Steps, options: &Options, tests: &[TestProgram]) -> Result<()> {
    cluster_up(steps, options.only.is_none())?;
    let mut arguments = vec!["--test-threads=1"];
    arguments.extend(options.only.as_deref());
    let end_to_end = tests.iter().filter(|test| test.is_end_to_end());
    steps.step("end-to-end tests", TEST_OUTPUT, || {
        programs::run_all(end_to_end, &arguments)
    })?;
    if options.only.is_some() {
        return Ok(());
    }
    steps.step(
        "demonstration",
        "`cargo xtask demo`, which shows the same",
        demo::tour,
    )?;
    steps.step("figures", "`cargo xtask bench`", || {
        bench::run(&bench::Options::shortest())
    })
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run::status(run::cargo().args(arguments).current_dir(paths::workspace()))
}

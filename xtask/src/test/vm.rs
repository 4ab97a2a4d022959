//! The tests of the data paths, of the workstation and of pods, on older kernels, in virtual machines.
//!
//! They need root and a kernel, but no cluster. A virtual machine has the file system of this
//! computer, with the programs as they are built here, and no network.

use std::{env, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    TEST_OUTPUT,
    programs::{self, TestProgram},
};
use crate::{
    consent::{Kubernetes, consent, needed},
    ebpf, packages, products,
    steps::Steps,
};
use guest::Guest;
use kernel::Kernel;
use selection::{NOT_REDIRECTS, TOO_SLOW, check, subset};

mod guest;
mod kernel;
mod selection;

/// The oldest that is supported, and one between it and those that distributions now have.
const SERIES: [&str; 2] = ["6.1", "6.12"];
const OLDEST: &str = SERIES[0];

const COMMAND: &str = "test vm";
const PROGRAM: &str = "datapath";
/// The test program of the redirects in pods. All of it runs on the oldest kernel: the program in a pod is
/// loaded there, and each of its decisions taken.
const REDIRECTS: &str = "redirect";

/// How many times as long the tests wait for what has no bound of its own.
const SLOWNESS: &str = "5";
const SUBSET_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const ALL_TIMEOUT: Duration = Duration::from_secs(60 * 60);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Only this kernel
    #[arg(long, value_name = "SERIES", value_parser = SERIES)]
    kernel: Option<String>,
    /// Only tests whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only what `cargo xtask test` runs
    #[arg(long, conflicts_with = "only")]
    subset: bool,
}

impl Options {
    fn choose(&self, mut tests: Vec<String>) -> Result<Vec<String>> {
        if self.subset {
            return subset(&tests);
        }
        check(&tests)?;
        let only = self.only.as_deref().unwrap_or_default();
        tests.retain(|test| test.contains(only) && !TOO_SLOW.contains(&test.as_str()));
        if tests.is_empty() {
            bail!("no test that an emulated processor can run is called {only}");
        }

        Ok(tests)
    }
}

/// Runs all tests that an emulated processor can run, on all kernels that apt offers.
pub(super) fn run(options: &Options) -> Result<()> {
    consent(COMMAND, Kubernetes::Absent, options.yes)?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed(COMMAND, Kubernetes::Absent))
    })?;
    steps.step("eBPF programs", "tp-ebpf/", ebpf::build)?;
    steps.step("programs", "the compiler output above", products::build)?;
    let tests = steps.step("tests built", "the compiler output above", programs::build)?;
    let program = find(&tests, PROGRAM)?;
    let chosen = options.choose(program.tests()?)?;
    let redirects = match options.only {
        None => Some(find(&tests, REDIRECTS)?),
        Some(_) => None,
    };

    let mut failed = Vec::new();
    let wanted = |series: &&str| options.kernel.as_ref().is_none_or(|only| only == series);
    for series in SERIES.into_iter().filter(wanted) {
        let outcome = steps.step(&step_name(series), TEST_OUTPUT, || {
            run_on(series, program, &chosen, ALL_TIMEOUT)?;
            redirects.map_or(Ok(()), |it| run_redirects_on(series, it))
        });
        if let Err(error) = outcome {
            println!("{error:#}");
            failed.push(series);
        }
    }
    steps.summary();
    if !failed.is_empty() {
        bail!("tests failed on Linux {}", failed.join(", "));
    }
    Ok(())
}

/// Runs the subset on the oldest kernel.
pub(super) fn run_subset(steps: &mut Steps, tests: &[TestProgram]) -> Result<()> {
    steps.step(&step_name(OLDEST), TEST_OUTPUT, || {
        let program = find(tests, PROGRAM)?;
        run_on(OLDEST, program, &subset(&program.tests()?)?, SUBSET_TIMEOUT)?;

        run_redirects_on(OLDEST, find(tests, REDIRECTS)?)
    })
}

fn step_name(series: &str) -> String {
    format!("data paths on Linux {series}")
}

fn find<'a>(tests: &'a [TestProgram], name: &str) -> Result<&'a TestProgram> {
    tests
        .iter()
        .find(|test| test.name() == name)
        .with_context(|| format!("there is no test program {name}"))
}

/// All of its tests need root, and are ignored elsewhere.
fn run_redirects_on(series: &str, program: &TestProgram) -> Result<()> {
    let mut tests = program.tests()?;
    tests.retain(|test| !NOT_REDIRECTS.contains(&test.as_str()));

    run_on(series, program, &tests, SUBSET_TIMEOUT)
}

fn run_on(series: &str, program: &TestProgram, tests: &[String], timeout: Duration) -> Result<()> {
    let Some(kernel) = Kernel::find(series)? else {
        let missing = format!("apt offers no kernel {series} for this computer's architecture");
        // What nobody looks at must not leave the oldest one out.
        if series == OLDEST && env::var_os("CI").is_some() {
            bail!("{missing}: add the package sources of the Debian that has it");
        }
        println!("    {missing}: NOT TESTED");
        return Ok(());
    };
    kernel.ensure()?;
    println!("    {} tests on Linux {}", tests.len(), kernel.release);
    let mut command = program.command();
    command
        .args(["--test-threads=1", "--include-ignored", "--exact"])
        .args(tests)
        .env("TP_SLOWNESS", SLOWNESS);
    let guest = Guest {
        kernel: &kernel,
        timeout,
    };

    guest.run(&command)
}

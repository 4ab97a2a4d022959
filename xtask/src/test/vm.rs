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

mod guest;
mod kernel;

/// The oldest that is supported, and one between it and those that distributions now have.
const SERIES: [&str; 2] = ["6.1", "6.12"];
const OLDEST: &str = SERIES[0];

const COMMAND: &str = "test vm";
const PROGRAM: &str = "datapath";
/// The test program of the redirects in pods. All of it runs on the oldest kernel: the program in a pod is
/// loaded there, and each of its decisions taken.
const REDIRECTS: &str = "redirect";

/// What depends on the kernel, one test or more of each: all programs are loaded and attached,
/// addresses are rewritten and shown in their real form, SYNs are held, packets are guarded, and
/// who has an alias is told by the kernel. Each costs some 8 s on two emulated processors.
const SUBSET: [&str; 19] = [
    "aliases::a_table_full_of_open_connections_stays_full_until_they_are_closed",
    "attacks::a_datagram_out_of_the_tun_reaches_no_server",
    "attacks::a_datagram_to_somebody_elses_query_is_not_heard",
    "attacks::a_listener_that_turns_client_reaches_no_server",
    "attacks::a_steered_socket_in_another_process_still_shows_the_real_address",
    "attacks::segments_out_of_the_tun_reach_no_server",
    "attacks::this_machine_accepts_no_connection_from_an_alias",
    "connects::a_dial_that_outlasts_repeated_syns_is_made_once",
    "connects::a_mapped_address_is_steered_and_reversed",
    "connects::a_socket_that_is_passed_on_still_tells_its_real_peer",
    "connects::connect_is_steered_and_the_application_sees_the_real_address",
    "connects::the_verdict_of_the_far_side_is_the_error_of_connect",
    "names::queries_to_a_name_server_are_answered_in_its_name",
    "privacy::a_cgroup_scope_reaches_no_further_than_the_cgroup",
    "privacy::a_container_of_another_user_on_the_hosts_network_cannot_use_the_aliases",
    "privacy::a_neighbour_cannot_use_the_aliases",
    "privacy::a_session_cannot_send_what_it_should_not",
    "privacy::a_set_user_id_program_is_not_steered",
    "privacy::another_user_is_not_steered_and_cannot_use_the_aliases",
];

/// Tests for which an emulated processor is too slow.
const TOO_SLOW: [&str; 3] = [
    // Measures microseconds.
    "connects::a_held_connect_waits_for_no_timer",
    "aliases::a_full_alias_table_is_an_error_and_never_a_wrong_address",
    // Exceeds a rate.
    "limits::environments_and_sockets_are_handed_out_at_a_bounded_rate",
];

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
    tests.retain(|test| !TOO_SLOW.contains(&test.as_str()));

    run_on(series, program, &tests, SUBSET_TIMEOUT)
}

/// A test that has another name now must not be left out.
fn subset(tests: &[String]) -> Result<Vec<String>> {
    SUBSET
        .into_iter()
        .map(|name| {
            let found = tests.iter().find(|test| *test == name);
            found
                .cloned()
                .with_context(|| format!("there is no test {name} in {PROGRAM}"))
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_of_the_subset_that_is_gone_is_told() {
        let mut all: Vec<String> = SUBSET.iter().map(|&name| name.to_owned()).collect();
        all.push("bounds::a".to_owned());
        assert_eq!(subset(&all).unwrap(), SUBSET);

        all.remove(0);
        let error = subset(&all).unwrap_err().to_string();
        assert!(error.contains(SUBSET[0]), "{error}");
    }
}

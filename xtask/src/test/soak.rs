//! Long forms of tests: the same code, lengthened by an environment variable.

use anyhow::{Result, bail};

use super::{TEST_OUTPUT, build, cluster_up};
use crate::{
    cluster,
    consent::{Kubernetes, consent, needed},
    ebpf, packages,
    steps::Steps,
};

struct Long {
    /// The test program of `tp-e2e`.
    program: &'static str,
    test: &'static str,
    variable: &'static str,
    value: &'static str,
}

const LONG: [Long; 3] = [
    Long {
        program: "chaos",
        test: "whatever_is_started_quit_and_killed_the_next_connect_works_and_quitting_leaves_nothing",
        variable: "TP_ROUNDS",
        value: "50",
    },
    Long {
        program: "intercepts",
        test: "failures::cycles_leave_nothing_in_the_pod_and_let_nothing_grow",
        variable: "TP_ROUNDS",
        value: "2000",
    },
    Long {
        program: "intercepts",
        test: "failures::kills_of_any_part_under_load_never_keep_the_traffic_for_longer_than_a_lease",
        variable: "TP_ROUNDS",
        value: "50",
    },
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Leave the test cluster as it is, up, before and after
    #[arg(long)]
    keep: bool,
    /// Only tests whose names contain this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

pub(crate) fn soak(options: &Options) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    let chosen: Vec<_> = LONG.iter().filter(|it| it.test.contains(only)).collect();
    if chosen.is_empty() {
        let known = LONG.map(|it| it.test).join(", ");
        bail!("no long test is called {only}; there are {known}");
    }
    consent("soak", Kubernetes::Own, options.yes)?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed("soak", Kubernetes::Own))
    })?;
    steps.step("eBPF programs", "tp-ebpf/", ebpf::build)?;
    let tests = build(&mut steps)?;
    cluster_up(&mut steps, !options.keep)?;
    let mut failed = Vec::new();
    for long in chosen {
        let name = format!("{} with {}={}", long.test, long.variable, long.value);
        let outcome = steps.step(&name, TEST_OUTPUT, || {
            let program = tests
                .iter()
                .find(|test| test.is_end_to_end() && test.name() == long.program);
            let Some(program) = program else {
                bail!("there is no test program {}", long.program);
            };
            program.run_with(&["--exact", long.test], &[(long.variable, long.value)])
        });
        if let Err(error) = outcome {
            println!("{error:#}");
            failed.push(long.test);
        }
    }
    if !options.keep {
        steps.step(
            "cluster down",
            "`cargo xtask cluster status`",
            cluster::down,
        )?;
    }
    steps.summary();
    if !failed.is_empty() {
        bail!("long tests failed: {}", failed.join(", "));
    }
    Ok(())
}

//! Everything that tests, set-up included: the order is the one in which mistakes should show.

use std::{
    io::{IsTerminal as _, Write as _},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{bench, cluster, demo, dist, ebpf, packages, paths, products, run, tidy, tools::Tool};
use programs::TestProgram;
use untouched::Untouched;

mod ipv6;
mod programs;
pub(crate) mod soak;
mod untouched;

/// Where to look when a test fails.
const THEIR_WORDS: &str = "what the failed test said above";

const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    arguments: &[],
    environment: &[],
};

#[derive(clap::Args)]
pub(crate) struct Options {
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

pub(crate) fn test(options: &Options) -> Result<()> {
    consent("test", Kubernetes::Own, options.yes)?;
    let kube = Untouched::kube()?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed(Kubernetes::Own))
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
        steps.step("unit and scenario tests", THEIR_WORDS, || {
            programs::run_all(unit, &["--quiet"])
        })?;
    }

    if options.only.is_none() {
        steps.step("IPv6-only cluster", "the command it names", ipv6::check)?;
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

/// Builds what is tested, and the tests.
fn build(steps: &mut Steps) -> Result<Vec<TestProgram>> {
    steps.step("programs", "the compiler's words above", products::build)?;
    steps.step("distribution", "target/dist", dist::pack)?;
    steps.step("tests built", "the compiler's words above", programs::build)
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

/// Known security problems of dependencies. Apart from the tests: what it finds depends on the day, and it needs a download.
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
            // Nothing that was left there by hand may help or hinder.
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
    steps.step("end-to-end tests", THEIR_WORDS, || {
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

/// Whose cluster a command uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kubernetes {
    /// The one that this machine runs for it.
    Own,
    /// The user's.
    Foreign,
}

/// Says what will be installed and built, and asks once.
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
    let lists = needed(kubernetes);
    let missing = packages::missing(&lists)?;
    let mut minutes = match command {
        "soak" => soak::MINUTES,
        "test" => 25,
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
        let compiling = if command == "test" { 10 } else { 5 };
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
    println!(
        "  caches     {} and {}",
        paths::cache().display(),
        paths::target().display()
    );
    println!("  about {minutes} min on two cores; ~/.kube is not touched");
    Ok(())
}

/// The packages that a command needs.
pub(crate) fn needed(kubernetes: Kubernetes) -> Vec<&'static [&'static str]> {
    let mut lists = vec![packages::BUILD, ebpf::packages()];
    if kubernetes == Kubernetes::Own {
        lists.extend([packages::CLUSTER, packages::CLIENTS, ebpf::lint_packages()]);
    }
    lists
}

/// Tells what goes on and how long each step took.
pub(crate) struct Steps {
    begin: Instant,
    done: Vec<(String, f64)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs one step; a failure says where to look.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        look_at: &str,
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        println!("==> {name}");
        let begin = Instant::now();
        let outcome = action();
        let seconds = begin.elapsed().as_secs_f64();
        match &outcome {
            Ok(_) => println!("    {name}: done in {seconds:.1} s"),
            Err(_) => println!("    {name}: FAILED after {seconds:.1} s"),
        }
        self.done.push((name.to_owned(), seconds));
        outcome.with_context(|| format!("{name} failed; look at {look_at}"))
    }

    pub(crate) fn summary(&self) {
        println!();
        for (name, seconds) in &self.done {
            println!("{seconds:8.1} s  {name}");
        }
        println!("{:8.1} s  all", self.begin.elapsed().as_secs_f64());
    }
}

//! Compares tp with the plain routed path and with the port-forward of kubectl, in the same rounds
//! of one run, because the machine's speed drifts.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cluster::{self, Layout},
    demo, paths,
    run::{self, Wait},
};
use figures::{Figures, Measure, Way};
use forward::PortForward;
use stats::median_of;

mod figures;
mod forward;
mod intercepted;
pub(crate) mod probe;
mod stats;

const NAMESPACE: &str = "shop";
const POD: &str = "bench";
/// Ports of the echo server: every byte answered, and bulk on command.
const ECHO: u16 = 7000;
const COMMAND: u16 = 7001;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Rounds; every round measures every way once.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// About how many seconds each bulk transfer takes.
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u32,
    /// Repetitions of each small measurement in a round.
    #[arg(long, default_value_t = 300)]
    pub(crate) samples: usize,
}

/// The machine that runs the load.
enum Host {
    /// The network namespace of a node, which routes to pods without tp.
    Node(String),
    Workstation,
}

impl Host {
    fn command(&self, words: &[&str]) -> Command {
        match self {
            Self::Node(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(cluster::netns::entry(namespace)).args(words);
                command
            }
            Self::Workstation => cluster::on_workstation(words),
        }
    }
}

struct Measurements<'a> {
    options: &'a Options,
    figures: &'a mut Figures,
}

/// The measurement of one path to the far end.
struct Measurement<'a> {
    options: &'a Options,
    figures: &'a mut Figures,
    way: Way,
    client: &'a Host,
}

impl Measurements<'_> {
    fn on<'a>(&'a mut self, way: Way, client: &'a Host) -> Measurement<'a> {
        Measurement {
            options: self.options,
            figures: self.figures,
            way,
            client,
        }
    }
}

impl Options {
    /// The shortest run that measures everything.
    pub(crate) fn shortest() -> Self {
        Self {
            yes: true,
            rounds: 1,
            seconds: 1,
            samples: 50,
        }
    }
}

/// Brings up the test cluster with tp, and measures there.
pub(crate) fn bench(options: &Options) -> Result<()> {
    demo::prepare("bench", options.yes)?;
    demo::install()?;

    run(options)
}

/// Measures on the running test cluster, in which tp must be installed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (pod, node) = deploy()?;
    let beside = Host::Node(cluster::node_beside(&node)?);
    let mut figures = Figures::default();
    quit()?;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        let mut measurements = Measurements {
            options,
            figures: &mut figures,
        };
        measurements
            .on(Way::Routed, &beside)
            .loads(&pod, COMMAND, ECHO);
        measurements
            .on(Way::Kubectl, &Host::Workstation)
            .kubectl()?;
        measurements
            .on(Way::Udp, &Host::Workstation)
            .connected("udp")?;
        measurements
            .on(Way::PortForward, &Host::Workstation)
            .connected("portforward")?;
        measurements.intercepted(&pod, &beside)?;
    }
    let mut last = Measurements {
        options,
        figures: &mut figures,
    };
    if let Err(error) = last.memory_of_agent(&node) {
        figures.failed(Measure::AgentBusy, Way::Intercepted, &error);
    }
    figures.print();
    let path = paths::target().join("bench.json");
    run::write(&path, serde_json::to_vec_pretty(&figures.to_json())?)?;
    println!("written to {}", path.display());

    figures.outcome()
}

/// Recreates the far end; returns its address and its node's name.
fn deploy() -> Result<(String, String)> {
    let layout = Layout::new();
    let manifest = paths::testbed_sources().join("bench.yaml");
    let manifest = manifest.display().to_string();
    layout.kubectl(&["delete", "--ignore-not-found", "--wait", "-f", &manifest])?;
    layout.kubectl(&["apply", "-f", &manifest])?;
    let pod = Wait {
        what: "the far end to be ready",
        within: Duration::from_secs(60),
        log: None,
    }
    .until(|| {
        layout.kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            "--timeout=5s",
            "pod/bench",
            "pod/bench-more",
        ])?;
        layout.kubectl(&[
            "-n",
            NAMESPACE,
            "get",
            "pod/bench",
            "-o",
            "jsonpath={.status.podIP} {.spec.nodeName}",
        ])
    })?;
    let (address, node) = pod
        .trim()
        .split_once(' ')
        .with_context(|| format!("the far end has no address or node: {pod:?}"))?;

    Ok((address.to_owned(), node.to_owned()))
}

impl Measurement<'_> {
    /// Runs the loads of every path. A failed one is reported at the end, and the others go on.
    fn loads(&mut self, host: &str, command: u16, echo: u16) {
        let seconds = self.options.seconds.to_string();
        let bulk = format!("{host}:{command}");
        self.measure(Measure::Up, &["bulk", "up", &bulk, &seconds]);
        self.measure(Measure::Down, &["bulk", "down", &bulk, &seconds]);
        self.small(host, echo);
    }

    fn small(&mut self, host: &str, echo: u16) {
        let samples = self.options.samples.to_string();
        let echo = format!("{host}:{echo}");
        self.measure(Measure::Request, &["requests", &echo, &samples]);
        self.measure(Measure::Connection, &["connects", &echo, &samples]);
        self.measure(Measure::Answer, &["answers", &echo, &samples]);
    }

    fn measure(&mut self, measure: Measure, words: &[&str]) {
        let probed = run::own_program().and_then(|own| {
            let own = own.display().to_string();
            let all = [&[own.as_str(), "probe"], words].concat();
            let text = run::output(&mut self.client.command(&all))?;
            let samples: Vec<f64> = serde_json::from_str(&text)?;
            if samples.is_empty() {
                bail!("there is no sample");
            }
            Ok(samples)
        });
        match probed {
            Ok(samples) => self.figures.add(measure, self.way, median_of(&samples)),
            Err(error) => self.figures.failed(measure, self.way, &error),
        }
    }

    fn kubectl(&mut self) -> Result<()> {
        let forward = PortForward::open(NAMESPACE, POD, &[COMMAND, ECHO])?;
        self.loads("127.0.0.1", forward.ports[0], forward.ports[1]);
        Ok(())
    }

    fn connected(&mut self, transport: &str) -> Result<()> {
        let start = Instant::now();
        run::output(&mut self.client.command(&[
            "tp",
            "connect",
            "--namespace",
            NAMESPACE,
            "--transport",
            transport,
        ]))?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.figures.add(Measure::Connect, self.way, took);
        self.loads(POD, COMMAND, ECHO);
        let samples = self.options.samples.to_string();
        let name = format!("{POD}.{NAMESPACE}.svc.cluster.local");
        self.measure(Measure::Name, &["resolve", &name, &samples]);

        quit()
    }
}

/// Ends the session and the daemons, if there are any.
fn quit() -> Result<()> {
    // `tp quit` exits with 3 without a session.
    let words = ["sh", "-c", "tp quit --stop-daemons || [ $? = 3 ]"];
    run::output(&mut cluster::on_workstation(&words)).map(drop)
}

//! First figures: tp beside the plain routed path and beside the port-forward of kubectl, all in
//! the same rounds of one run, because the machine's speed drifts.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::{paths, run};
use stats::{Spread, median_of};

pub(crate) mod probe;
mod stats;

const NAMESPACE: &str = "shop";
const POD: &str = "bench";
const IPERF_PORT: u16 = 5201;
const ECHO_PORT: u16 = 7000;
const KUBECTL: &str = "kubectl port-forward";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds; every round measures every way once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each bulk transfer.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Repetitions of each small measurement in a round.
    #[arg(long, default_value_t = 300)]
    samples: usize,
}

/// One figure: what was measured, on which way.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Figure {
    what: &'static str,
    way: &'static str,
    unit: &'static str,
}

#[derive(Serialize)]
struct Row {
    what: &'static str,
    way: &'static str,
    unit: &'static str,
    #[serde(flatten)]
    spread: Spread,
}

#[derive(Default)]
struct Figures(BTreeMap<Figure, Vec<f64>>);

impl Figures {
    fn add(&mut self, what: &'static str, way: &'static str, unit: &'static str, value: f64) {
        self.0
            .entry(Figure { what, way, unit })
            .or_default()
            .push(value);
    }

    fn rows(&self) -> Vec<Row> {
        self.0
            .iter()
            .filter_map(|(figure, samples)| {
                let spread = Spread::of(samples)?;
                Some(Row {
                    what: figure.what,
                    way: figure.way,
                    unit: figure.unit,
                    spread,
                })
            })
            .collect()
    }
}

/// Where the load runs.
#[derive(Clone, Copy)]
enum Place {
    /// A node: it routes to pods without any help.
    Node,
    Workstation,
}

impl Place {
    fn command(self, program: &str) -> Result<Command> {
        let mut command = match self {
            Self::Node => {
                let mut command = Command::new("nsenter");
                command.arg("--net=/run/netns/tpt-1");
                command
            }
            Self::Workstation => {
                let mut command = Command::new(env::current_exe()?);
                command.args(["cluster", "ws"]);
                command
            }
        };
        command.arg(program);
        Ok(command)
    }
}

/// Measures on the running test cluster, in which tp must be installed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let pod = deploy()?;
    let mut figures = Figures::default();
    quit();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        routed(&mut figures, options, &pod)?;
        kubectl(&mut figures, options)?;
        connected(&mut figures, options, "tp udp", "quic")?;
        connected(&mut figures, options, "tp portforward", "portforward")?;
    }
    report(&figures)
}

/// The far end; returns the pod's address.
fn deploy() -> Result<String> {
    let manifest = paths::testbed_sources().join("bench.yaml");
    run::output(
        Place::Workstation
            .command("kubectl")?
            .args(["apply", "-f"])
            .arg(manifest),
    )?;
    run::output(Place::Workstation.command("kubectl")?.args([
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "pod/bench",
        "--timeout=60s",
    ]))?;
    pod_address("pod/bench")
}

fn pod_address(object: &str) -> Result<String> {
    let address = run::output(Place::Workstation.command("kubectl")?.args([
        "-n",
        NAMESPACE,
        "get",
        object,
        "-o",
        "jsonpath={.status.podIP}{.items[0].status.podIP}",
    ]))?;
    if address.trim().is_empty() {
        bail!("{object} has no address yet; is the cluster healthy? `cargo xtask cluster status`");
    }

    Ok(address.trim().to_owned())
}

fn routed(figures: &mut Figures, options: &Options, pod: &str) -> Result<()> {
    bulk(figures, options, Place::Node, "routed", pod, IPERF_PORT)?;
    let echo = echo_address()?;
    requests(
        figures,
        options,
        Place::Node,
        "routed",
        &format!("{echo}:{ECHO_PORT}"),
    )
}

fn echo_address() -> Result<String> {
    run::output(Place::Workstation.command("kubectl")?.args([
        "-n",
        NAMESPACE,
        "get",
        "pods",
        "-l",
        "app=echo",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ]))
    .map(|address| address.trim().to_owned())
}

fn kubectl(figures: &mut Figures, options: &Options) -> Result<()> {
    let (_forward, port) = PortForward::open(&format!("pod/{POD}"), IPERF_PORT)?;
    bulk(
        figures,
        options,
        Place::Workstation,
        KUBECTL,
        "127.0.0.1",
        port,
    )?;
    let (_forward, port) = PortForward::open("deployment/echo", ECHO_PORT)?;
    let target = format!("127.0.0.1:{port}");
    requests(figures, options, Place::Workstation, KUBECTL, &target)
}

fn connected(
    figures: &mut Figures,
    options: &Options,
    way: &'static str,
    transport: &str,
) -> Result<()> {
    let start = Instant::now();
    run::output(Place::Workstation.command("tp")?.args([
        "connect",
        "--namespace",
        NAMESPACE,
        "--transport",
        transport,
    ]))?;
    figures.add("tp connect", way, "ms", start.elapsed().as_secs_f64() * 1e3);
    let _session = Quit;
    bulk(figures, options, Place::Workstation, way, POD, IPERF_PORT)?;
    requests(
        figures,
        options,
        Place::Workstation,
        way,
        &format!("echo:{ECHO_PORT}"),
    )?;
    let count = options.samples.to_string();
    let connects = probe(
        Place::Workstation,
        &["connects", &format!("echo:{ECHO_PORT}"), &count],
    )?;
    figures.add("new connection", way, "us", median_of(&connects));
    let names = probe(
        Place::Workstation,
        &["resolve", "echo.shop.svc.cluster.local", &count],
    )?;
    figures.add("service name", way, "us", median_of(&names));

    Ok(())
}

fn bulk(
    figures: &mut Figures,
    options: &Options,
    place: Place,
    way: &'static str,
    host: &str,
    port: u16,
) -> Result<()> {
    for (what, direction) in [("bulk up", None), ("bulk down", Some("--reverse"))] {
        // kubectl breaks an upload that iperf3 ends: its last word, the rate, never comes.
        if way == KUBECTL && direction.is_none() {
            continue;
        }
        let mut command = place.command("iperf3")?;
        command.args(["--json", "--client", host, "--port", &port.to_string()]);
        command
            .args(["--time", &options.seconds.to_string()])
            .args(direction);
        let text = run::output(&mut command).with_context(|| format!("{what}, {way}"))?;
        let result: serde_json::Value = serde_json::from_str(&text)?;
        let rate = result["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .with_context(|| format!("iperf3 gave no rate for {what}, {way}"))?;
        figures.add(what, way, "Gbit/s", rate / 1e9);
    }

    Ok(())
}

fn requests(
    figures: &mut Figures,
    options: &Options,
    place: Place,
    way: &'static str,
    target: &str,
) -> Result<()> {
    let samples = probe(place, &["requests", target, &options.samples.to_string()])?;
    figures.add("request", way, "us", median_of(&samples));

    Ok(())
}

fn probe(place: Place, arguments: &[&str]) -> Result<Vec<f64>> {
    let own = env::current_exe()?;
    let own = own.to_str().context("the path of xtask is not UTF-8")?;
    let text = run::output(place.command(own)?.arg("probe").args(arguments))?;

    Ok(serde_json::from_str(&text)?)
}

fn quit() {
    drop(Quit);
}

/// Ends the session when dropped; that there is none is fine.
struct Quit;

impl Drop for Quit {
    fn drop(&mut self) {
        if let Ok(mut command) = Place::Workstation.command("tp") {
            let _ended = run::output(command.arg("quit"));
        }
    }
}

/// kubectl port-forward on a port of its own choice, ended when dropped.
struct PortForward(Child);

impl PortForward {
    fn open(object: &str, port: u16) -> Result<(Self, u16)> {
        let mut child = Place::Workstation
            .command("kubectl")?
            .args(["-n", NAMESPACE, "port-forward", object, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().expect("stdout is piped");
        let this = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:40001 -> 5201"
        let local = line
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("kubectl port-forward said {line:?}"))?;

        Ok((this, local))
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn report(figures: &Figures) -> Result<()> {
    let rows = figures.rows();
    println!(
        "{:<16} {:<22} {:>9} {:>9} {:>9}  unit",
        "what", "way", "min", "median", "max"
    );
    for row in &rows {
        let Spread {
            min, median, max, ..
        } = row.spread;
        println!(
            "{:<16} {:<22} {min:>9.2} {median:>9.2} {max:>9.2}  {}",
            row.what, row.way, row.unit
        );
    }
    let path = paths::target().join("bench.json");
    run::write(&path, serde_json::to_vec_pretty(&rows)?)?;
    println!("written to {}", path.display());

    Ok(())
}

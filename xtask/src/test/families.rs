//! Clusters without IPv4, and with both families: tp can be installed there, names the networks that it
//! does not reach, and intercepts at the addresses of every family.

use std::{process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{
    cluster::{self, Network},
    consent::{Kubernetes, consent, needed},
    demo, dist, packages, products,
    run::{self, Background, Wait},
    steps::Steps,
};

const COMMAND: &str = "test families";
const NODES: u8 = 2;
const LOCAL_PORT: &str = "8090";
const PAGE: &str = "from the workstation";
/// What only the pod answers.
const OF_THE_POD: &str = "\"pod\":\"echo-";

#[derive(clap::Args)]
pub(super) struct Options {
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(options: &Options) -> Result<()> {
    consent(COMMAND, Kubernetes::Own, options.yes)?;
    let mut steps = Steps::new();
    steps.step("packages", "the log it names", || {
        packages::ensure(&needed(COMMAND, Kubernetes::Own))
    })?;
    steps.step("programs", "the compiler output above", products::build)?;
    steps.step("distribution", "target/dist", dist::pack)?;
    run_all(&mut steps)?;
    steps.summary();

    Ok(())
}

pub(super) fn run_all(steps: &mut Steps) -> Result<()> {
    steps.step("IPv6-only cluster", "the command it names", || {
        on(Network::Ipv6, 1)
    })?;
    steps.step("dual-stack cluster", "the command it names", || {
        on(Network::DualStack, 2)
    })
}

/// Brings such a cluster up, checks, and takes it down.
fn on(network: Network, addresses: usize) -> Result<()> {
    cluster::down()?;
    cluster::up(NODES, network)?;
    cluster::import(&dist::image())?;
    cluster::deploy_echo()?;
    let image = format!("--image={}", products::image_reference());
    let install = ["tp", "install", &image, "--image-pull-policy=Never"];
    on_workstation(&[&install[..], &["--wait=90s"]].concat())?;
    let connect = ["tp", "connect", "--namespace", "shop"];
    let connected = on_workstation(&[&connect[..], &["--output", "json"]].concat())?;
    // Where there is IPv4 as well, nothing is missed.
    let is_told = connected.contains("IPv6 is not steered yet");
    if is_told != (network == Network::Ipv6) {
        bail!("what is said of unreached networks is wrong:\n{connected}");
    }
    let listed = on_workstation(&["tp", "list"])?;
    if !listed.contains("echo") {
        bail!("the workloads are not listed:\n{listed}");
    }
    intercepted(addresses)?;
    on_workstation(&["tp", "quit", "--stop-daemons"])?;
    Wait {
        what: "no session to be left",
        within: Duration::from_secs(10),
        log: None,
    }
    .until(|| {
        let left = on_workstation(&["kubectl", "get", "sessions.tp.internal", "-A", "-o", "name"])?;
        match left.as_str() {
            "" => Ok(()),
            left => bail!("{left}"),
        }
    })?;
    on_workstation(&["tp", "uninstall", "--everything", "--yes"])?;
    cluster::down()
}

/// Every address of the service leads to the workstation while it is intercepted, from the node of the
/// pod and from the other one, and to the pod afterwards.
fn intercepted(addresses: usize) -> Result<()> {
    let words = demo::page_server("families", PAGE, LOCAL_PORT)?;
    let mut server = Background::start(&mut cluster::on_workstation(&words))?;
    Wait {
        what: "the server on the workstation",
        within: Duration::from_secs(10),
        log: None,
    }
    .until(|| {
        server.check_runs()?;
        let url = format!("http://127.0.0.1:{LOCAL_PORT}/");
        on_workstation(&["curl", "--silent", "--fail", &url]).map(drop)
    })?;
    let query = "jsonpath={.spec.clusterIPs[*]}";
    let get = ["kubectl", "-n", "shop", "get", "service", "echo", "-o"];
    let ips = on_workstation(&[&get[..], &[query]].concat())?;
    let ips: Vec<&str> = ips.split_whitespace().collect();
    if ips.len() != addresses {
        bail!("the service has the addresses {ips:?} instead of {addresses}");
    }
    let port = format!("{LOCAL_PORT}:8080");
    on_workstation(&["tp", "intercept", "echo", "--port", &port])?;
    everywhere(&ips, PAGE)?;
    on_workstation(&["tp", "leave", "echo"])?;

    everywhere(&ips, OF_THE_POD)
}

fn everywhere(ips: &[&str], expected: &str) -> Result<()> {
    for ip in ips {
        let url = match ip.contains(':') {
            true => format!("http://[{ip}]:8080/"),
            false => format!("http://{ip}:8080/"),
        };
        for node in 1..=NODES {
            let node = cluster::netns::node(node);
            let mut command = Command::new("nsenter");
            command.arg(cluster::netns::entry(&node));
            command.args(["curl", "--silent", "--show-error", "--max-time", "5", &url]);
            let answer = run::output(&mut command)?;
            if !answer.contains(expected) {
                bail!("{url} on {node} answers {answer:?} without {expected:?}");
            }
        }
    }

    Ok(())
}

fn on_workstation(words: &[&str]) -> Result<String> {
    run::output(&mut cluster::on_workstation(words))
}

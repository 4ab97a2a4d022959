//! Paths from the cluster to the workstation, and beside them.

use std::{
    fs,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{COMMAND, ECHO, Host, Measure, Measurements, NAMESPACE, POD, Way, quit};
use crate::{
    cluster, paths,
    run::{self, Background, Wait},
};

/// The pods of 100 intercepts, and the ports of each.
const MANY_PODS: [&str; 2] = [POD, "bench-more"];
const MANY: RangeInclusive<u16> = 20_001..=20_050;

/// Starts the echo server as a process of the workstation.
fn start_handler() -> Result<Background> {
    let program = paths::testbed().join("bin/echo-server");
    let program = program.display().to_string();
    let mut handler = Background::start(&mut cluster::on_workstation(&[&program]))?;
    Wait {
        what: "the echo server on the workstation",
        within: Duration::from_secs(10),
        log: None,
    }
    .until(|| {
        handler.check_runs()?;
        let own = run::own_program()?.display().to_string();
        let local = format!("127.0.0.1:{COMMAND}");
        let words = [own.as_str(), "probe", "connects", &local, "1"];
        run::output(&mut cluster::on_workstation(&words)).map(drop)
    })?;

    Ok(handler)
}

impl Measurements<'_> {
    /// Intercepts one port of the far end and measures the other, then both.
    pub(super) fn intercepted(&mut self, pod: &str, beside: &Host) -> Result<()> {
        let _handler = start_handler()?;
        let words = [
            "tp",
            "connect",
            "--namespace",
            NAMESPACE,
            "--transport",
            "udp",
        ];
        run::output(&mut cluster::on_workstation(&words))?;

        intercept(POD, "one", &[COMMAND])?;
        self.on(Way::Beside, beside).small(pod, ECHO);
        leave("one")?;

        let start = Instant::now();
        intercept(POD, "both", &[COMMAND, ECHO])?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.figures.add(Measure::Intercept, Way::Intercepted, took);
        self.on(Way::Intercepted, beside).loads(pod, COMMAND, ECHO);
        leave("both")?;

        quit()
    }

    /// With no intercept, and with many that each had a connection. Other ports than those of the loads:
    /// what nothing declares can be intercepted as well.
    pub(super) fn memory_of_agent(&mut self, node: &str) -> Result<()> {
        // What an agent keeps of earlier loads is not its need.
        let layout = cluster::Layout::new();
        let agents = ["-n", "tp-agents", "rollout"];
        layout.kubectl(&[&agents[..], &["restart", "daemonset/tp-agent"]].concat())?;
        let status = ["status", "daemonset/tp-agent", "--timeout=60s"];
        layout.kubectl(&[&agents[..], &status].concat())?;
        let idle = memory_of_agent(node)?;
        self.figures.add(Measure::AgentIdle, Way::Intercepted, idle);

        run::output(&mut cluster::on_workstation(&[
            "tp",
            "connect",
            "--namespace",
            NAMESPACE,
        ]))?;
        for pod in MANY_PODS {
            for port in MANY {
                intercept(pod, &format!("{pod}-{port}"), &[port])?;
            }
        }
        let busy = memory_of_agent(node)?;
        self.figures.add(Measure::AgentBusy, Way::Intercepted, busy);

        quit()
    }
}

/// The resident memory of both programs of a node's agent, in MB.
fn memory_of_agent(node: &str) -> Result<f64> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let get = ["-n", "tp-agents", "get", "pods", &field, "-o"];
    let uid = [&get[..], &["jsonpath={.items[0].metadata.uid}"]].concat();
    let uid = cluster::Layout::new().kubectl(&uid)?;
    let mut kilobytes = 0;
    let mut programs = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let is_program = read("comm").starts_with("tp-agent");
        if !is_program || !read("cgroup").contains(uid.trim()) {
            continue;
        }
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|it| it.split_whitespace().next());
        kilobytes += resident
            .context("a program of the agent has ended")?
            .parse::<u64>()?;
        programs += 1;
    }
    ensure!(
        programs == 2,
        "{programs} programs of the agent run on {node}"
    );

    Ok(kilobytes as f64 / 1e3)
}

fn intercept(pod: &str, name: &str, ports: &[u16]) -> Result<()> {
    let workload = format!("pod/{pod}");
    let ports: Vec<String> = ports
        .iter()
        .map(|port| format!("--port={port}:{port}"))
        .collect();
    let mut words = vec!["tp", "intercept", &workload, "--name", name];
    words.extend(ports.iter().map(String::as_str));

    run::output(&mut cluster::on_workstation(&words)).map(drop)
}

fn leave(name: &str) -> Result<()> {
    run::output(&mut cluster::on_workstation(&["tp", "leave", name])).map(drop)
}

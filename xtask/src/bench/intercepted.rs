//! Paths from the cluster to the workstation, and beside them.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{COMMAND, ECHO, Host, Measure, Measurements, NAMESPACE, POD, Way, quit};
use crate::{
    cluster, paths,
    run::{self, Background, Wait},
};

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

        intercept("one", &[COMMAND])?;
        self.on(Way::Beside, beside).small(pod, ECHO);
        leave("one")?;

        let start = Instant::now();
        intercept("both", &[COMMAND, ECHO])?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.figures.add(Measure::Intercept, Way::Intercepted, took);
        self.on(Way::Intercepted, beside).loads(pod, COMMAND, ECHO);
        leave("both")?;

        quit()
    }
}

fn intercept(name: &str, ports: &[u16]) -> Result<()> {
    let workload = format!("pod/{POD}");
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

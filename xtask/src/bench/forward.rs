//! `kubectl port-forward`, to compare tp with.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use crate::cluster;

/// A running forward, ended when dropped.
pub(super) struct PortForward {
    child: Child,
    /// Local ports, in the order asked for.
    pub(super) ports: Vec<u16>,
}

impl PortForward {
    /// Forwards local ports of kubectl's choice to `remote` ports of a pod.
    pub(super) fn open(namespace: &str, pod: &str, remote: &[u16]) -> Result<Self> {
        let pod = format!("pod/{pod}");
        let mut command = cluster::on_workstation(&["kubectl", "-n", namespace]);
        command
            .args(["port-forward", "--address=127.0.0.1", &pod])
            .args(remote.iter().map(|port| format!(":{port}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("starting kubectl port-forward")?;
        let output = child.stdout.take().expect("stdout is piped");
        let mut this = Self {
            child,
            ports: Vec::new(),
        };
        // Each line is "Forwarding from 127.0.0.1:40001 -> 5201"; a failure ends the output.
        let mut lines = BufReader::new(output).lines();
        for wanted in remote {
            let line = lines
                .next()
                .with_context(|| format!("kubectl port-forward ended without port {wanted}"))??;
            let port = line
                .split_once("127.0.0.1:")
                .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("kubectl port-forward said {line:?}"))?;
            this.ports.push(port);
        }
        // Its later output, a line per connection, must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));

        Ok(this)
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

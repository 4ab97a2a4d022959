//! A second API server of the running cluster, like one of an older Kubernetes.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;

use crate::{
    cluster::testbed,
    files::read_json,
    process::{Running, eventually, run},
};

/// No test expects this port to be closed.
const PORT: &str = "6445";
/// For its start: it first reads all objects of the cluster.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// An API server that leaves port-forwards to the kubelet, as all did before Kubernetes 1.31. It
/// shares the first one's store; stopped when dropped.
#[derive(Debug)]
pub struct OlderApiServer(#[expect(dead_code, reason = "a guard")] Running);

impl OlderApiServer {
    /// Starts it with the arguments of the first one, and waits until it is ready.
    #[track_caller]
    pub fn start() -> Self {
        let mut command = testbed().inside(&testbed().namespace("1"));
        command
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(words_of_the_first())
            .arg(format!("--secure-port={PORT}"))
            // It must not change the first one's endpoints.
            .args(["--endpoint-reconciler-type=none", "--feature-gates"])
            .arg("PortForwardWebsockets=false,APIServerIdentity=false");
        let mut server = Running::start(&mut command);

        eventually("the older API server to be ready", START_TIMEOUT, || {
            assert!(!server.has_ended(), "the older API server has ended");
            let server = format!("--server={}", url());
            let mut probe = testbed().kubectl_command(&[&server, "get", "--raw", "/readyz"]);
            let answer = run(&mut probe, START_TIMEOUT);
            if answer.status.success() {
                Ok(())
            } else {
                Err(answer.stderr)
            }
        });

        Self(server)
    }

    /// Points a kubeconfig at this server.
    #[track_caller]
    pub fn serve(&self, kubeconfig: &Path) {
        let mut config = read_json(kubeconfig);
        config["clusters"][0]["cluster"]["server"] = json!(url());
        fs::write(kubeconfig, config.to_string()).expect("a kubeconfig can be written");
    }
}

fn url() -> String {
    format!("https://172.30.0.11:{PORT}")
}

/// Program and arguments of the cluster's API server.
#[track_caller]
fn words_of_the_first() -> Vec<String> {
    let mut list = Command::new("ip");
    list.args(["netns", "pids", &testbed().namespace("1")]);
    let pids = run(&mut list, START_TIMEOUT).expect_success();

    pids.lines()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .map(|words| {
            let words = words.trim_end_matches('\0').split('\0');
            words.map(str::to_owned).collect::<Vec<_>>()
        })
        .find(|words| words.get(1).is_some_and(|word| word == "kube-apiserver"))
        .expect("the cluster has an API server")
}

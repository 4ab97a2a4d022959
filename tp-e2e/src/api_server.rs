//! A second API server of the running cluster, as one of an older Kubernetes.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::testbed,
    process::{Running, eventually, run},
};

const PORT: &str = "6444";
/// It reads all of the cluster's objects first.
const START: Duration = Duration::from_secs(60);

/// An API server that leaves port-forwards to the kubelet, as all did before Kubernetes 1.31. It
/// shares the first one's store and ends when dropped.
#[derive(Debug)]
pub struct OlderApiServer(#[expect(dead_code, reason = "a guard")] Running);

impl OlderApiServer {
    /// Starts it with the words of the first one, and waits until it is ready.
    #[track_caller]
    pub fn start() -> Self {
        let mut command = testbed().inside(&testbed().namespace("1"));
        command
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(words_of_the_first())
            .arg(format!("--secure-port={PORT}"))
            // It takes no part in what the first one writes about itself.
            .args(["--endpoint-reconciler-type=none", "--feature-gates"])
            .arg("PortForwardWebsockets=false,APIServerIdentity=false");
        let mut server = Running::start(&mut command);
        let config = testbed().dir().join("e2e-older.conf");
        fs::copy(testbed().kubeconfig("admin"), &config).expect("the testbed's folder is writable");
        lead_to_it(&config);

        eventually("the older API server to be ready", START, || {
            assert!(!server.has_ended(), "the older API server has ended");
            let mut probe = testbed().kubectl_command(&["get", "--raw", "/readyz"]);
            let answer = run(probe.env("KUBECONFIG", &config), START);
            if answer.status.success() {
                Ok(())
            } else {
                Err(answer.stderr)
            }
        });

        Self(server)
    }

    /// Makes a kubeconfig lead to this server.
    #[track_caller]
    pub fn serve(&self, kubeconfig: &Path) {
        lead_to_it(kubeconfig);
    }
}

#[track_caller]
fn lead_to_it(kubeconfig: &Path) {
    let text = fs::read_to_string(kubeconfig).expect("a kubeconfig can be read");
    let mut config: Value = serde_json::from_str(&text).expect("the testbed writes JSON");
    let server = &mut config["clusters"][0]["cluster"]["server"];
    let (host, _) = server
        .as_str()
        .and_then(|server| server.rsplit_once(':'))
        .expect("the server has a port");
    *server = json!(format!("{host}:{PORT}"));
    fs::write(kubeconfig, config.to_string()).expect("a kubeconfig can be written");
}

/// Program and arguments of the cluster's API server.
#[track_caller]
fn words_of_the_first() -> Vec<String> {
    let mut list = Command::new("ip");
    list.args(["netns", "pids", &testbed().namespace("1")]);
    let pids = run(&mut list, START).expect_success();

    pids.lines()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .map(|words| {
            let words = words.trim_end_matches('\0').split('\0');
            words.map(str::to_owned).collect::<Vec<_>>()
        })
        .find(|words| words.get(1).is_some_and(|word| word == "kube-apiserver"))
        .expect("the cluster has an API server")
}

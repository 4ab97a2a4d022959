//! The running test cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

use crate::{
    files::{file_with, path_of},
    process::{Finished, PATIENCE, eventually, run},
};

/// The cluster that `cargo xtask cluster up` started.
#[derive(Debug)]
pub struct Testbed {
    dir: PathBuf,
    prefix: String,
}

/// Finds the cluster; without one the test fails with the command to start it.
pub fn testbed() -> &'static Testbed {
    static TESTBED: OnceLock<Testbed> = OnceLock::new();
    TESTBED.get_or_init(|| {
        let dir = std::env::var_os("TP_TESTBED").map(PathBuf::from);
        let dir = dir.filter(|dir| dir.join("bin/echo-client").exists());
        let dir = dir.expect(
            "no test cluster: run this through `cargo xtask test`, or start one with `cargo xtask \
             cluster up` and set TP_TESTBED to its folder",
        );
        let prefix = std::env::var("TP_TESTBED_PREFIX").unwrap_or_else(|_| "tpt-".into());

        Testbed { dir, prefix }
    })
}

impl Testbed {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The client that talks to the echo server.
    pub fn echo_client(&self) -> PathBuf {
        self.dir.join("bin/echo-client")
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// A network namespace of the testbed; `cluster down` removes all of them.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The network namespace of the workstation.
    pub fn workstation(&self) -> String {
        self.namespace("ws")
    }

    /// The network namespace of a neighbour in the workstation's network.
    pub fn neighbour(&self) -> String {
        self.namespace("lan")
    }

    /// The kubeconfig of a person: admin, dev, limited or stranger.
    pub fn kubeconfig(&self, person: &str) -> PathBuf {
        self.dir.join("users").join(format!("{person}.conf"))
    }

    /// Runs kubectl as administrator; returns its output.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(&mut self.kubectl_command(arguments), PATIENCE).expect_success()
    }

    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside(&self.workstation());
        command
            .arg("kubectl")
            .arg("--request-timeout=30s")
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig("admin"));
        command
    }

    /// Runs kubectl as a person, in that person's environment.
    #[track_caller]
    pub fn kubectl_as(&self, person: &str, arguments: &[&str]) -> Finished {
        let mut command = self.inside(&self.workstation());
        command
            .arg("kubectl")
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig(person));
        run(&mut command, PATIENCE)
    }

    /// PATH with the cluster's own programs.
    pub(crate) fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        format!("{}:{path}", self.dir.join("bin").display())
    }

    /// A command in a network namespace, with the cluster's programs on PATH and a home for
    /// kubectl's cache. Not `ip netns exec`, which hides control groups.
    pub fn inside(&self, namespace: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{namespace}"))
            .env("HOME", &self.dir)
            .env("PATH", self.path());
        command
    }

    /// The output of a command in a network namespace, which must succeed.
    #[track_caller]
    pub fn run_inside(&self, namespace: &str, words: &[&str]) -> String {
        run(self.inside(namespace).args(words), PATIENCE).expect_success()
    }

    /// An object as JSON.
    #[track_caller]
    pub fn object(&self, namespace: &str, kind: &str, name: &str) -> Value {
        let text = self.kubectl(&["get", kind, name, "--namespace", namespace, "--output=json"]);
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// The cluster address of a service.
    #[track_caller]
    pub fn service_ip(&self, namespace: &str, name: &str) -> String {
        let service = self.object(namespace, "service", name);
        text(&service["spec"]["clusterIP"])
    }

    /// The address of a ready pod of an application.
    #[track_caller]
    pub fn pod_ip(&self, namespace: &str, app: &str) -> String {
        let selector = format!("--selector=app={app}");
        let text_of_pods = self.kubectl(&[
            "get",
            "pods",
            "--namespace",
            namespace,
            &selector,
            "--output=json",
        ]);
        let pods: Value = serde_json::from_str(&text_of_pods).expect("kubectl prints JSON");
        text(&pods["items"][0]["status"]["podIP"])
    }

    #[track_caller]
    pub fn kubectl_apply(&self, manifest: &str) {
        self.kubectl(&["apply", "--filename", path_of(&file_with(manifest))]);
    }

    /// Lets a person reach a namespace, by a binding of this name.
    #[track_caller]
    pub fn give_right(&self, binding: &str, person: &str, namespace: &str) {
        self.kubectl(&[
            "create",
            "rolebinding",
            binding,
            "--clusterrole=tp-user",
            &format!("--user={person}"),
            &format!("--namespace={namespace}"),
        ]);
    }

    #[track_caller]
    pub fn take_right(&self, binding: &str, namespace: &str) {
        self.kubectl(&["delete", "rolebinding", binding, "--namespace", namespace]);
    }

    /// Disturbs the network between workstation and nodes until the guard is dropped. One at a
    /// time.
    #[must_use = "the disturbance ends with the guard"]
    pub fn impair(&self, rules: Impairment) -> Impaired {
        let (from, to) = match rules {
            Impairment::UdpLost => ("meta l4proto udp drop", "meta l4proto udp drop"),
            Impairment::UdpLostOutward => ("meta l4proto udp drop", ""),
            Impairment::UdpLostInward => ("", "meta l4proto udp drop"),
            Impairment::ApiServerAway => ("tcp dport 6443 drop", "tcp sport 6443 drop"),
            Impairment::NothingPasses => ("meta l4proto { tcp, udp } drop", ""),
        };
        // On the wire's side of the cable: the workstation's own firewall stays unchanged.
        self.nft(&format!(
            "table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n\
             chain from {{ type filter hook ingress device p-ws priority 0; {from}\n }}\n\
             chain to {{ type filter hook egress device p-ws priority 0; {to}\n }}\n}}\n"
        ));
        Impaired
    }

    /// The manager's processes on this machine, each with the name of its pod.
    pub fn managers(&self) -> Vec<(u32, String)> {
        let pod_of = |pid: u32| {
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
            let pod = environment
                .split('\0')
                .find_map(|variable| variable.strip_prefix("POD_NAME="));
            pod.map(str::to_owned)
        };
        let managers = self.processes("tp-manager").into_iter();

        managers
            .filter_map(|pid| Some((pid, pod_of(pid)?)))
            .collect()
    }

    /// The processes of this name in the cluster.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let is_ours = |pid: u32| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
            Some(
                read("comm")?.trim_end() == name
                    && read("cgroup")?.contains(&format!("/{}", self.prefix)),
            )
        };
        let processes = fs::read_dir("/proc").expect("there is a /proc");

        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| is_ours(*pid) == Some(true))
            .collect()
    }

    fn nft(&self, rules: &str) {
        self.run_inside(
            &self.namespace("wire"),
            &["nft", "-f", path_of(&file_with(rules))],
        );
    }

    /// Deletes the pod of the first manager, and waits until it is gone.
    #[track_caller]
    pub fn delete_manager(&self) {
        self.kubectl(&["delete", "pod", "tp-manager-0", "--namespace=tp-system"]);
    }

    /// Deletes the first manager's pod, and waits until its successor is ready.
    #[track_caller]
    pub fn replace_manager(&self) {
        self.delete_manager();
        self.manager_ready();
    }

    /// Waits until the managers are ready, after a test has disturbed them.
    #[track_caller]
    pub fn manager_ready(&self) {
        eventually("the manager to be ready", PATIENCE, || {
            let done = run(
                &mut self.kubectl_command(&[
                    "rollout",
                    "status",
                    "statefulset/tp-manager",
                    "--namespace=tp-system",
                    "--timeout=5s",
                ]),
                PATIENCE,
            );
            if done.status.success() {
                Ok(())
            } else {
                Err(done.stderr)
            }
        });
    }
}

const TABLE: &str = "tp_e2e";

/// A disturbance between workstation and nodes.
#[derive(Debug, Clone, Copy)]
pub enum Impairment {
    UdpLost,
    UdpLostOutward,
    UdpLostInward,
    ApiServerAway,
    /// Blocks both paths of the tunnel; the company's name server is on the workstation's side.
    NothingPasses,
}

/// Undoes an impairment when dropped.
#[derive(Debug)]
pub struct Impaired;

impl Drop for Impaired {
    fn drop(&mut self) {
        testbed().nft(&format!(
            "table netdev {TABLE}\ndelete table netdev {TABLE}\n"
        ));
    }
}

/// A string of a JSON document.
#[track_caller]
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a text is expected instead of {value}"))
        .to_owned()
}

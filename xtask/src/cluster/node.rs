//! A node: containerd, kubelet and kube-proxy in a network namespace and control group of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    Layout,
    build::{PAUSE_IMAGE, Programs},
    netns,
    network::Network,
    process::Daemon,
};
use crate::run::{self, Wait};

/// A kubelet listens here for device plugins, wherever its own folder is. It first removes the
/// folder's content: of two kubelets that start together one may find the address in use, and
/// exits.
pub(crate) const DEVICES: &str = "/var/lib/kubelet/device-plugins";
const MOUNT_DEVICES: &str = "mkdir -p \"$0\" && mount --bind \"$1\" \"$0\" && shift && exec \"$@\"";

pub(crate) struct Node<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) network: Network,
    pub(crate) index: u8,
}

impl<'a> Node<'a> {
    pub(crate) fn new(layout: &'a Layout, index: u8) -> Self {
        Self {
            layout,
            network: Network::current(layout),
            index,
        }
    }
}

impl Node<'_> {
    pub(crate) fn name(&self) -> String {
        format!("node{}", self.index)
    }

    fn folder(&self) -> PathBuf {
        self.layout.dir.join(self.name())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("containerd.sock")
    }

    /// The Node object, made before the kubelet so that its pod range is fixed.
    pub(crate) fn object(&self) -> serde_json::Value {
        let families = self.network.families().iter();
        let ranges: Vec<String> = families.map(|it| it.pod_range(self.index)).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name() },
            "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
        })
    }

    /// Starts the container runtime in a mount namespace that becomes the node's, and imports its
    /// first images. Returns its process id.
    pub(crate) fn start_runtime(&self, programs: &Programs) -> Result<u32> {
        self.write_network()?;
        let config = self.folder().join("containerd.toml");
        run::write(&config, self.runtime_config())?;
        let devices = self.folder().join("devices");
        fs::create_dir_all(&devices).with_context(|| format!("creating {}", devices.display()))?;
        let mut command: Vec<String> = ["unshare", "--mount", "--propagation", "private"]
            .into_iter()
            .chain(["sh", "-c", MOUNT_DEVICES, DEVICES])
            .map(str::to_owned)
            .collect();
        command.extend([
            text(&devices),
            "containerd".into(),
            "-c".into(),
            text(&config),
        ]);
        let name = format!("containerd{}", self.index);
        let runtime = self.daemon(&name, command);
        let pid = runtime.start(self.layout)?;
        Wait {
            what: "containerd to answer",
            within: Duration::from_secs(30),
            log: Some(&runtime.log(self.layout)),
        }
        .until(|| run::output(self.ctr().arg("version")))?;

        self.import(&programs.pause_image)?;
        self.import(&programs.coredns_image)?;
        Ok(pid)
    }

    /// Starts kubelet and kube-proxy beside the runtime with this process id.
    pub(crate) fn start_agents(&self, programs: &Programs, runtime: u32) -> Result<()> {
        make_control_groups(&netns::node(self.index))?;
        let pki = |name: String| text(&self.layout.pki().join(name));
        let config = self.folder().join("kubelet.json");
        run::write(
            &config,
            serde_json::to_string_pretty(&self.kubelet_config())?,
        )?;
        let kubelet = format!("kubelet{}", self.index);
        self.daemon(
            &kubelet,
            vec![
                "nsenter".to_owned(),
                format!("--mount=/proc/{runtime}/ns/mnt"),
                text(&programs.kube),
                "kubelet".to_owned(),
                format!("--config={}", config.display()),
                format!("--kubeconfig={}", pki(format!("{}.conf", self.name()))),
                format!("--hostname-override={}", self.name()),
                format!(
                    "--node-ip={}",
                    self.network.of_each(|it| it.node(self.index))
                ),
                format!("--root-dir={}", self.folder().join("kubelet").display()),
                format!("--cert-dir={}", self.folder().join("pki").display()),
            ],
        )
        .start(self.layout)?;

        let proxy = format!("kube-proxy{}", self.index);
        self.daemon(
            &proxy,
            vec![
                text(&programs.kube),
                "kube-proxy".to_owned(),
                format!("--kubeconfig={}", pki("proxy.conf".to_owned())),
                format!("--hostname-override={}", self.name()),
                format!("--cluster-cidr={}", self.network.of_each(Network::pods)),
                format!("--bind-address={}", self.network.unspecified()),
                "--proxy-mode=iptables".to_owned(),
                "--iptables-min-sync-period=100ms".to_owned(),
                // Conntrack's sysctls are read-only outside the first network namespace.
                "--conntrack-max-per-core=0".to_owned(),
                "--conntrack-min=0".to_owned(),
                "--conntrack-tcp-timeout-established=0".to_owned(),
                "--conntrack-tcp-timeout-close-wait=0".to_owned(),
            ],
        )
        .start(self.layout)?;
        Ok(())
    }

    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        run::output(
            self.ctr()
                .args(["-n", "k8s.io", "images", "import"])
                .arg(archive),
        )
        .map(drop)
        .with_context(|| format!("importing {} into {}", archive.display(), self.name()))
    }

    pub(crate) fn kubelet_log(&self) -> PathBuf {
        self.layout
            .logs()
            .join(format!("kubelet{}.log", self.index))
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(self.socket());
        ctr
    }

    fn daemon<'n>(&self, name: &'n str, command: Vec<String>) -> NodeDaemon<'n> {
        NodeDaemon {
            namespace: netns::node(self.index),
            name,
            command,
        }
    }

    fn write_network(&self) -> Result<()> {
        let families = self.network.families();
        let ranges = families
            .iter()
            .map(|it| json!([{ "subnet": it.pod_range(self.index) }]));
        let ranges: Vec<serde_json::Value> = ranges.collect();
        let routes = families.iter().map(|it| json!({ "dst": it.everywhere() }));
        let routes: Vec<serde_json::Value> = routes.collect();
        let config = json!({
            "cniVersion": "0.4.0",
            "name": format!("{}pods{}", netns::PREFIX, self.index),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": false,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.folder().join("addresses"),
                        "ranges": ranges,
                        "routes": routes,
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        run::write(
            &self.folder().join("cni/10-pods.conflist"),
            config.to_string(),
        )
    }

    /// `restrict_oom_score_adj`: without CAP_SYS_RESOURCE runc would die of "can't get final
    /// child's PID from pipe". `netns_mounts_under_state_dir`: we remove everything below our
    /// folder.
    fn runtime_config(&self) -> String {
        let folder = self.folder();
        let folder = folder.display();
        format!(
            r#"version = 2
root = "{folder}/containerd"
state = "{folder}/state"

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"#,
            socket = self.socket().display(),
        )
    }

    fn kubelet_config(&self) -> serde_json::Value {
        let pki = self.layout.pki();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": pki.join("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "cgroupDriver": "cgroupfs",
            // Each kubelet of a machine needs a group of its own.
            "cgroupRoot": format!("/{}", control_group(&netns::node(self.index))),
            "failCgroupV1": false,
            "failSwapOn": false,
            "address": self.network.unspecified(),
            "clusterDNS": [self.network.cluster_dns()],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "tlsCertFile": pki.join(format!("{}.crt", self.name())),
            "tlsPrivateKeyFile": pki.join(format!("{}.key", self.name())),
            "resolvConf": self.layout.resolv_conf(),
            "podLogsDir": self.folder().join("logs"),
            "volumePluginDir": self.folder().join("volume-plugins"),
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
        })
    }
}

/// Like `Daemon`, but owns the name of its namespace.
struct NodeDaemon<'a> {
    namespace: String,
    name: &'a str,
    command: Vec<String>,
}

impl NodeDaemon<'_> {
    fn start(&self, layout: &Layout) -> Result<u32> {
        self.daemon().start(layout)
    }

    fn log(&self, layout: &Layout) -> PathBuf {
        self.daemon().log(layout)
    }

    fn daemon(&self) -> Daemon<'_> {
        Daemon {
            namespace: &self.namespace,
            name: self.name,
            command: self.command.clone(),
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The control group of a node; `process.rs` finds the members by this prefix.
fn control_group(namespace: &str) -> String {
    format!(
        "{}node{}",
        netns::PREFIX,
        namespace.trim_start_matches(netns::PREFIX)
    )
}

/// Folders for control groups: one root per hierarchy of version 1, or the only one of version 2.
fn control_group_roots() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    if top.join("cgroup.procs").exists() {
        return vec![top];
    }
    fs::read_dir(&top).map_or_else(
        |_| Vec::new(),
        |entries| {
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
                .collect()
        },
    )
}

fn make_control_groups(namespace: &str) -> Result<()> {
    for root in control_group_roots() {
        let subtree = root.join("cgroup.subtree_control");
        for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
            // Version 2 only; a missing controller, or one that version 1 holds, cannot be
            // delegated.
            if subtree.exists() {
                let _ = fs::write(&subtree, format!("+{controller}"));
            }
        }
        let group = root.join(control_group(namespace));
        fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
    }
    Ok(())
}

/// Removes the control groups of all nodes, which must hold no process.
pub(crate) fn remove_control_groups() -> Result<()> {
    for root in control_group_roots() {
        let Ok(entries) = fs::read_dir(&root) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(&control_group("")) {
                Wait {
                    what: "a control group to be empty",
                    within: Duration::from_secs(10),
                    log: None,
                }
                .until(|| remove_group(&entry.path()))?;
            }
        }
    }
    Ok(())
}

fn remove_group(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("removing {}", group.display()))
}

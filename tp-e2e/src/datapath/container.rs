//! Containers on the machine under test, run by runc from this computer's own programs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

use super::{Machine, Process, sh};

/// The network of a container.
#[derive(Clone, Copy)]
pub enum Network<'a> {
    /// A network namespace of its own.
    Bridge(&'a Bridge),
    /// The machine's network namespace.
    Host,
}

/// A bridge like Docker's: the machine is the containers' default route and masquerades their
/// packets.
pub struct Bridge {
    netns: String,
}

impl Bridge {
    #[track_caller]
    pub fn new(machine: &Machine) -> Self {
        let host = &machine.netns;
        let bridge = Self {
            netns: format!("{host}-c"),
        };
        let netns = &bridge.netns;
        sh(&format!("ip netns add {netns}"));
        sh(&format!("ip -n {netns} link set lo up"));
        sh(&format!("ip -n {host} link add docker0 type bridge"));
        sh(&format!(
            "ip -n {host} address add 172.32.0.1/24 dev docker0"
        ));
        sh(&format!(
            "ip -n {host} link add c0 master docker0 type veth peer name eth0 netns {netns}"
        ));
        sh(&format!("ip -n {host} link set c0 up"));
        sh(&format!("ip -n {host} link set docker0 up"));
        sh(&format!("ip -n {netns} address add 172.32.0.2/24 dev eth0"));
        sh(&format!("ip -n {netns} link set eth0 up"));
        sh(&format!("ip -n {netns} route add default via 172.32.0.1"));
        // Answer every unroutable packet, without a rate limit.
        let mut answer_all = machine.command(&["sysctl", "-qw", "net.ipv4.icmp_ratelimit=0"]);
        assert!(answer_all.status().is_ok_and(|status| status.success()));
        for rule in [
            "add table ip docker",
            "add chain ip docker out { type nat hook postrouting priority srcnat; }",
            "add rule ip docker out ip saddr 172.32.0.0/24 oifname != docker0 masquerade",
        ] {
            let nft = machine.command(&["nft", rule]).status();
            assert!(nft.is_ok_and(|status| status.success()), "{rule}");
        }
        bridge
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.netns])
            .status();
    }
}

impl Machine {
    /// The report of an application of this user in a container.
    #[track_caller]
    pub fn containers_app(&self, network: Network<'_>, uid: u32, words: &[&str]) -> Value {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{n}", self.netns);
        let bundle = self.dir.path().join(&name);
        write_bundle(&bundle, &config(self, &name, network, uid, words));
        let state = self.dir.path().join("runc").display().to_string();
        let bundle = bundle.display().to_string();
        let words = ["runc", "--root", &state, "run", "--bundle", &bundle, &name];

        Process::start(&mut self.command(&words)).object()
    }
}

fn config(machine: &Machine, name: &str, network: Network<'_>, uid: u32, words: &[&str]) -> Value {
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
    ];
    if let Network::Bridge(bridge) = network {
        let path = format!("/run/netns/{}", bridge.netns);
        namespaces.push(json!({"type": "network", "path": path}));
    }
    let read_only = |source: &Path, destination: &str| {
        json!({
            "type": "bind",
            "source": source,
            "destination": destination,
            "options": ["rbind", "ro"],
        })
    };

    let arguments = [&["/tp/datapath", "app"], words].concat();

    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": arguments,
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "mounts": [
            {"type": "proc", "source": "proc", "destination": "/proc"},
            read_only(Path::new("/usr"), "/usr"),
            read_only(machine.dir(), "/tp"),
        ],
        "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{name}")},
    })
}

#[track_caller]
fn write_bundle(bundle: &Path, config: &Value) {
    let root = bundle.join("rootfs");
    for folder in ["proc", "tp", "usr"] {
        fs::create_dir_all(root.join(folder)).expect("own folder");
    }
    for link in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link)).expect("own folder");
    }
    fs::write(bundle.join("config.json"), config.to_string()).expect("own folder");
}

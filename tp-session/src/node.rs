//! Detects parts of a cluster on this machine, in this network namespace: a session of root would steer
//! their connections, too.

use std::{fs, path::Path};

use ipnet::IpNet;
use tp_core::steering::Local;

/// Names of processes as the kernel keeps them, cut after 15 bytes.
const COMPONENTS: [&str; 12] = [
    "kubelet",
    "kubelite",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kube-proxy",
    "k3s-server",
    "k3s-agent",
    "k3s",
    "rke2",
    "k0s",
    "cloud-controlle",
];
/// Interfaces by which network plugins connect the pods of a node.
const INTERFACES: [&str; 12] = [
    "cni0",
    "flannel",
    "cali",
    "cilium_",
    "lxc_",
    "weave",
    "kube-",
    "ovn-k8s",
    "antrea",
    "genev_sys",
    "vxlan.calico",
    "tunl",
];

/// Describes a part of a cluster that was found, as a phrase.
pub(super) fn detect(networks: &[IpNet], local: &Local) -> Option<String> {
    component(Path::new("/proc"))
        .map(|name| format!("{name} runs here"))
        .or_else(|| {
            interface(networks, local).map(|name| format!("{name} connects pods of the cluster"))
        })
}

/// A process of the same network namespace, if this user may look.
fn component(proc: &Path) -> Option<String> {
    let own = fs::read_link(proc.join("self/ns/net")).ok()?;

    fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let folder = entry.path();
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        let name = name.trim();
        let is_here = || fs::read_link(folder.join("ns/net")).is_ok_and(|net| net == own);

        (COMPONENTS.contains(&name) && is_here()).then(|| name.to_owned())
    })
}

fn interface(networks: &[IpNet], local: &Local) -> Option<String> {
    let links = local.connected.iter().chain(&local.routed);

    links
        .filter(|link| networks.iter().any(|network| link.overlaps(network)))
        .map(|link| &link.interface)
        .find(|name| INTERFACES.iter().any(|start| name.starts_with(start)))
        .cloned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tp_core::steering::Link;

    use super::*;

    #[test]
    fn a_component_counts_in_its_own_network_only() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: &str, name: &str, net: &str| {
            let folder = proc.path().join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            symlink(net, folder.join("ns/net")).unwrap();
        };
        add("self", "tp-daemon", "net:[1]");
        add("7", "kubelet", "net:[2]");
        add("8", "kubelet-not", "net:[1]");
        assert_eq!(component(proc.path()), None);

        add("9", "kubelet", "net:[1]");
        assert_eq!(component(proc.path()).as_deref(), Some("kubelet"));
    }

    #[test]
    fn an_interface_of_a_network_plugin_counts_if_the_clusters_pods_are_behind_it() {
        let networks: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap()];
        let local = |interface: &str, network: &str| Local {
            connected: vec![Link {
                network: network.parse().unwrap(),
                interface: interface.to_owned(),
            }],
            ..Local::default()
        };

        assert!(interface(&networks, &local("cni0", "10.244.1.0/24")).is_some());
        assert!(interface(&networks, &local("cni0", "10.42.1.0/24")).is_none());
        assert!(interface(&networks, &local("eth0", "10.244.1.0/24")).is_none());
    }
}

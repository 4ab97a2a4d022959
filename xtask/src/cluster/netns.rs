//! Network namespaces of the cluster and the wire between them.
//!
//! ```text
//!  tpt-ws .200 (.53: company DNS)   tpt-lan .210   tpt-1 .11   tpt-2 .12 …
//!        └──────────────┴──── br0 in tpt-wire ────────┴───────────┘        172.30.0.0/24
//! ```
//! The nodes drop packets from the workstation to pods and services, but not those of the neighbour `tpt-lan`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::network::Network;
use crate::run;

pub(crate) const PREFIX: &str = "tpt-";
pub(crate) const WIRE: &str = "tpt-wire";
pub(crate) const WORKSTATION: &str = "tpt-ws";
pub(crate) const NEIGHBOUR: &str = "tpt-lan";

pub(crate) fn node(index: u8) -> String {
    format!("{PREFIX}{index}")
}

pub(crate) fn path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

/// The argument of nsenter. `ip netns exec` would mount another /sys, without control groups.
pub(crate) fn entry(namespace: &str) -> String {
    format!("--net={}", path(namespace).display())
}

/// Our existing namespaces.
pub(crate) fn existing() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Makes the wire and the namespaces on it.
pub(crate) fn create(network: Network, nodes: u8) -> Result<()> {
    ip(&format!("netns add {WIRE}"))?;
    ip(&format!("-n {WIRE} link add br0 type bridge"))?;
    ip(&format!("-n {WIRE} link set br0 up"))?;
    for index in 1..=nodes {
        plug(&node(index))?;
    }
    plug(WORKSTATION)?;
    plug(NEIGHBOUR)?;

    network
        .families()
        .iter()
        .try_for_each(|family| address(*family, nodes))
}

/// Gives everybody their addresses and routes of one family.
fn address(network: Network, nodes: u8) -> Result<()> {
    for index in 1..=nodes {
        add_address(network, &node(index), &network.node(index))?;
        route(network, &node(index), "default", network.workstation())?;
    }
    add_address(network, WORKSTATION, network.workstation())?;
    add_address(network, WORKSTATION, network.name_server())?;
    route(network, WORKSTATION, "default", &network.node(1))?;
    add_address(network, NEIGHBOUR, network.neighbour())?;
    route(network, NEIGHBOUR, network.services(), &network.node(1))?;
    for index in 1..=nodes {
        let range = network.pod_range(index);
        for other in (1..=nodes).filter(|other| *other != index) {
            route(network, &node(other), &range, &network.node(index))?;
        }
        route(network, NEIGHBOUR, &range, &network.node(index))?;
        guard(network, &node(index), &range)?;
    }
    Ok(())
}

/// Makes a node forward for its pods, but not for the workstation.
fn guard(network: Network, node: &str, range: &str) -> Result<()> {
    let (workstation, iptables) = (network.workstation(), network.iptables());
    inside(node, &format!("sysctl -qw {}", network.forwarding()))?;
    for own in network.own() {
        inside(
            node,
            &format!("{iptables} -w -t raw -A PREROUTING -i e0 -s {workstation} -d {own} -j DROP"),
        )?;
        // Packets within the cluster keep their source.
        inside(
            node,
            &format!("{iptables} -w -t nat -A POSTROUTING -s {range} -d {own} -j RETURN"),
        )?;
    }
    // Pods leave the cluster with the address of their node.
    inside(
        node,
        &format!("{iptables} -w -t nat -A POSTROUTING -s {range} -o e0 -j MASQUERADE"),
    )
    .map(drop)
}

fn route(network: Network, namespace: &str, to: &str, via: &str) -> Result<()> {
    ip(&format!(
        "{} -n {namespace} route add {to} via {via}",
        network.ip()
    ))
}

fn add_address(network: Network, namespace: &str, address: &str) -> Result<()> {
    // Skips duplicate address detection: the address is usable at once.
    let flags = match network {
        Network::Ipv4 | Network::DualStack => "",
        Network::Ipv6 => "nodad",
    };
    ip(&format!(
        "-n {namespace} address add {address}/{} dev e0 {flags}",
        network.wire_bits()
    ))
}

pub(crate) fn remove() -> Result<()> {
    for name in existing()? {
        ip(&format!("netns delete {name}"))?;
    }
    Ok(())
}

fn plug(namespace: &str) -> Result<()> {
    let port = format!("p-{}", namespace.trim_start_matches(PREFIX));
    ip(&format!("netns add {namespace}"))?;
    ip(&format!(
        "link add e0 netns {namespace} type veth peer name {port} netns {WIRE}"
    ))?;
    ip(&format!("-n {WIRE} link set {port} master br0 up"))?;
    ip(&format!("-n {namespace} link set lo up"))?;
    ip(&format!("-n {namespace} link set e0 up"))
}

fn ip(arguments: &str) -> Result<()> {
    run::output(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

/// Runs a command inside a namespace.
pub(crate) fn inside(namespace: &str, command: &str) -> Result<String> {
    run::output(
        Command::new("nsenter")
            .arg(entry(namespace))
            .args(command.split_whitespace()),
    )
}

const IMPAIRMENT: &str = "tpt_impair";

/// How the way between workstation and nodes is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Impairment {
    /// Nothing: undo
    None,
    /// Every UDP packet is lost
    UdpDrop,
    /// UDP packets from the workstation are lost
    UdpDropOut,
    /// UDP packets to the workstation are lost
    UdpDropIn,
    /// One UDP packet in a hundred is lost, each way
    UdpLoss,
    /// Nothing gets through to the API server
    ApiDrop,
}

/// Replaces the current impairment.
pub(crate) fn impair(impairment: Impairment) -> Result<()> {
    let from_workstation = match impairment {
        Impairment::UdpDrop | Impairment::UdpDropOut => "meta l4proto udp drop",
        Impairment::UdpLoss => "meta l4proto udp numgen random mod 100 0 drop",
        Impairment::ApiDrop => "tcp dport 6443 drop",
        Impairment::None | Impairment::UdpDropIn => "",
    };
    let to_workstation = match impairment {
        Impairment::UdpDrop | Impairment::UdpDropIn => "meta l4proto udp drop",
        Impairment::UdpLoss => "meta l4proto udp numgen random mod 100 0 drop",
        Impairment::ApiDrop => "tcp sport 6443 drop",
        Impairment::None | Impairment::UdpDropOut => "",
    };
    // At the wire's end of the workstation's cable, so that the workstation's own firewall stays
    // unchanged.
    let mut rules = format!("table netdev {IMPAIRMENT}\ndelete table netdev {IMPAIRMENT}\n");
    if impairment != Impairment::None {
        rules += &format!(
            "table netdev {IMPAIRMENT} {{\n\
             chain from_ws {{ type filter hook ingress device p-ws priority 0; {from_workstation}\n }}\n\
             chain to_ws {{ type filter hook egress device p-ws priority 0; {to_workstation}\n }}\n}}\n"
        );
    }
    let mut file = tempfile::NamedTempFile::new().context("making a file for nft")?;
    std::io::Write::write_all(&mut file, rules.as_bytes())?;
    inside(WIRE, &format!("nft -f {}", file.path().display())).map(drop)
}

/// What waits for a slow link, and which way it is slow.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Limit {
    /// Mbit/s
    mbit: Option<u64>,
    /// How long a full queue takes to pass
    #[arg(long, default_value_t = 20)]
    queue_ms: u64,
    /// What the workstation is sent, instead of what it sends
    #[arg(long)]
    down: bool,
}

/// The token bucket's size: the largest packet that the kernel passes on.
const BURST: u64 = 64 << 10;

/// Replaces the limit of that direction.
pub(crate) fn limit(limit: &Limit) -> Result<()> {
    let (namespace, device) = match limit.down {
        true => (WIRE, "p-ws"),
        false => (WORKSTATION, "e0"),
    };
    let Some(mbit) = limit.mbit else {
        return inside(namespace, &format!("tc qdisc del dev {device} root")).map(drop);
    };
    let bytes = (mbit * 125 * limit.queue_ms).max(BURST);
    inside(
        namespace,
        &format!(
            "tc qdisc replace dev {device} root tbf rate {mbit}mbit burst {BURST} limit {bytes}"
        ),
    )
    .map(drop)
}

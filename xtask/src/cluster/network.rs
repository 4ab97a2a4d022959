//! Addresses of the cluster and its neighbours, in one family or in both.

use std::fs;

use anyhow::Result;

use super::Layout;
use crate::run;

/// Which addresses everybody has: there are clusters without a single IPv4 address, and those whose pods
/// and services have one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    #[default]
    Ipv4,
    Ipv6,
    /// IPv4 first
    DualStack,
}

const FILE: &str = "network";

impl Network {
    /// The network of the running cluster, or of the last one.
    pub(crate) fn current(layout: &Layout) -> Self {
        let text = fs::read_to_string(layout.dir.join(FILE)).unwrap_or_default();
        match text.trim() {
            "ipv6" => Self::Ipv6,
            "dual-stack" => Self::DualStack,
            _ => Self::Ipv4,
        }
    }

    pub(crate) fn keep(self, layout: &Layout) -> Result<()> {
        let text = match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::DualStack => "dual-stack",
        };
        run::write(&layout.dir.join(FILE), text)
    }

    /// Its families, each as a network of that family alone; the first is what the rest of this type
    /// answers with.
    pub(crate) fn families(self) -> &'static [Self] {
        match self {
            Self::Ipv4 => &[Self::Ipv4],
            Self::Ipv6 => &[Self::Ipv6],
            Self::DualStack => &[Self::Ipv4, Self::Ipv6],
        }
    }

    /// What Kubernetes takes for several families: one of each, separated by commas.
    pub(crate) fn of_each<T: Into<String>>(self, one: impl Fn(Self) -> T) -> String {
        let all: Vec<String> = self.families().iter().map(|it| one(*it).into()).collect();

        all.join(",")
    }

    fn choose(self, ipv4: &'static str, ipv6: &'static str) -> &'static str {
        match self {
            Self::Ipv4 | Self::DualStack => ipv4,
            Self::Ipv6 => ipv6,
        }
    }

    /// The prefix length of the wire that connects all.
    pub(crate) fn wire_bits(self) -> &'static str {
        self.choose("24", "64")
    }

    pub(crate) fn workstation(self) -> &'static str {
        self.choose("172.30.0.200", "fd00:30::200")
    }

    pub(crate) fn neighbour(self) -> &'static str {
        self.choose("172.30.0.210", "fd00:30::210")
    }

    /// The company's name server.
    pub(crate) fn name_server(self) -> &'static str {
        self.choose("172.30.0.53", "fd00:30::53")
    }

    pub(crate) fn services(self) -> &'static str {
        self.choose("10.96.0.0/16", "fd00:96::/112")
    }

    /// The cluster IP of the API server.
    pub(crate) fn api_service(self) -> &'static str {
        self.choose("10.96.0.1", "fd00:96::1")
    }

    pub(crate) fn cluster_dns(self) -> &'static str {
        self.choose("10.96.0.10", "fd00:96::a")
    }

    pub(crate) fn pods(self) -> &'static str {
        self.choose("10.244.0.0/16", "fd00:244::/56")
    }

    /// All networks that are the cluster's own.
    pub(crate) fn own(self) -> &'static [&'static str] {
        match self {
            Self::Ipv4 | Self::DualStack => &["10.0.0.0/8"],
            Self::Ipv6 => &["fd00:96::/112", "fd00:244::/56"],
        }
    }

    pub(crate) fn everywhere(self) -> &'static str {
        self.choose("0.0.0.0/0", "::/0")
    }

    /// The wildcard address for servers.
    pub(crate) fn unspecified(self) -> &'static str {
        self.choose("0.0.0.0", "::")
    }

    pub(crate) fn node(self, index: u8) -> String {
        match self {
            Self::Ipv4 | Self::DualStack => format!("172.30.0.{}", 10 + index),
            Self::Ipv6 => format!("fd00:30::1{index}"),
        }
    }

    pub(crate) fn pod_range(self, index: u8) -> String {
        match self {
            Self::Ipv4 | Self::DualStack => format!("10.244.{index}.0/24"),
            Self::Ipv6 => format!("fd00:244:0:{index}::/64"),
        }
    }

    /// The URL of the API server in kubeconfigs.
    pub(crate) fn server(self) -> String {
        let address = self.node(1);
        match self {
            Self::Ipv4 | Self::DualStack => format!("https://{address}:6443"),
            Self::Ipv6 => format!("https://[{address}]:6443"),
        }
    }

    /// The options of ip(8) for this family.
    pub(crate) fn ip(self) -> &'static str {
        self.choose("-4", "-6")
    }

    pub(crate) fn iptables(self) -> &'static str {
        self.choose("iptables", "ip6tables")
    }

    pub(crate) fn forwarding(self) -> &'static str {
        self.choose("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    }
}

//! What the agent knows of the cluster: the part of the API server's objects that decides what is
//! redirected. Whoever fills it, the rest of the agent asks nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use tp_agent_api::PodIds;
use tp_core::{environment::filter::NamePattern, intercept::holders::WorkloadKey};
use tp_transport::KeyHash;

/// All that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// By UID.
    pub intercepts: BTreeMap<String, InterceptFacts>,
    /// The pods of the node, by UID.
    pub pods: BTreeMap<String, PodFacts>,
    /// By UID of the Intercept; one that is missing is under way.
    pub reviews: BTreeMap<String, UserReview>,
}

/// An Intercept, as far as the agent goes by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptFacts {
    /// Whose traffic it is.
    pub workload: WorkloadKey,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Ports of the containers.
    pub ports: BTreeSet<u16>,
    /// The one pod that it is of; `None` for all.
    pub replica: Option<String>,
    /// The workstation answers the probes of the pod.
    pub has_local_probes: bool,
    /// The container serves while nothing listens at the workstation.
    pub falls_back: bool,
    /// Connections that the pods have already are ended.
    pub takes_open: bool,
}

/// A pod of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The pod itself and its owners, which are all of its namespace.
    pub workloads: Vec<WorkloadKey>,
    /// How its processes are found.
    pub ids: PodIds,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The addresses of its node, from which the kubelet probes.
    pub nodes: Vec<IpAddr>,
    /// The ports on which a probe cannot be told from another connection.
    pub probed: BTreeSet<u16>,
    /// The other ports that the kubelet probes, by HTTP.
    pub http_probed: BTreeSet<u16>,
    /// Why it cannot be redirected as it is, as a sentence.
    pub obstacle: Option<String>,
}

/// Whether the user of an Intercept may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserReview {
    /// They may.
    Allowed,
    /// They may not, or it cannot be told: a sentence.
    Denied(String),
}

/// The managers' addresses and keys, by pod.
pub type ManagerFacts = BTreeMap<String, ManagerAddress>;

/// Where a manager listens for agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerAddress {
    /// Address and port.
    pub address: SocketAddr,
    /// The key that it must prove.
    pub key: KeyHash,
}

/// What is served: which namespaces, and which variables never.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Where the managers are.
    pub manager_namespace: String,
    /// Also kube-system.
    pub allow_system: bool,
    /// Only these; all if it is empty.
    pub only: BTreeSet<String>,
    /// Variables that do not leave the node.
    pub excluded_names: Vec<NamePattern>,
}

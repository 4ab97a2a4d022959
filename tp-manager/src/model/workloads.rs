//! Workloads, listed or found on request.

use tp_core::intercept::matching::Ports;

/// Something that runs pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) ready: u32,
    pub(crate) desired: u32,
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

/// A workload with what its pods and services declare.
#[derive(Debug, Clone, Default)]
pub(crate) struct FoundWorkload {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Its pods that are Ready.
    pub(crate) ready: Vec<FoundPod>,
    pub(crate) ports: Ports,
}

/// A pod of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundPod {
    pub(crate) name: String,
    pub(crate) node: String,
}

/// Why there is no such workload, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FindError {
    NotFound(String),
    Ambiguous(String),
    /// The API server does not say.
    Unavailable(String),
}

//! Containers of workloads, found on request, and their environments.

use tp_core::{
    environment::{filter::NamePattern, rebuild::SpecVariable},
    intercept::workload::WorkloadName,
};

/// A container, as a user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedContainer {
    pub(crate) namespace: String,
    pub(crate) workload: WorkloadName,
    /// `None`: the default container of the pod, then `otherwise`, then the first.
    pub(crate) container: Option<String>,
    pub(crate) otherwise: Option<String>,
    /// `None`: any, rather one that is Ready.
    pub(crate) pod: Option<String>,
}

/// A container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundContainer {
    pub(crate) kind: String,
    pub(crate) workload: String,
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    pub(crate) node: String,
    pub(crate) container: String,
    /// Without the name of its runtime.
    pub(crate) id: String,
    pub(crate) spec: Vec<SpecVariable>,
}

/// What the agent of its node says.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentEnviron {
    /// Secrets.
    pub(crate) environ: Vec<u8>,
    pub(crate) is_overwritten: bool,
    pub(crate) excluded_names: Vec<NamePattern>,
    pub(crate) excluded: u32,
}

/// Shows no value.
impl std::fmt::Debug for AgentEnviron {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentEnviron")
            .field("is_overwritten", &self.is_overwritten)
            .finish_non_exhaustive()
    }
}

/// Why there is none, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvironError {
    /// The agent does not give it.
    Refused(String),
    /// No agent answers.
    Unavailable(String),
}

//! Flags for the cluster, the user, and the traffic manager's namespace.

use std::path::PathBuf;

use clap::Args;
use tp_proto::crd::MANAGER_NAMESPACE;

use crate::values;

/// Which cluster, as whom: as for kubectl.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct ClusterArgs {
    /// Kubeconfig file; otherwise $KUBECONFIG, ~/.kube/config, the service account of a pod
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; the current one by default
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Cluster of the kubeconfig, in place of the context's
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// User of the kubeconfig, in place of the context's
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    pub(crate) impersonate_user: Option<String>,

    /// Group to impersonate; may be given several times
    #[arg(long = "as-group", value_name = "GROUP", requires = "impersonate_user")]
    pub(crate) impersonate_groups: Vec<String>,
}

impl ClusterArgs {
    /// Returns whether one of the flags is given.
    pub(crate) fn are_given(&self) -> bool {
        *self != Self::default()
    }
}

/// Where the traffic manager is.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct ManagerArgs {
    /// Namespace of the traffic manager
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = MANAGER_NAMESPACE,
        value_parser = values::namespace,
        help_heading = "Kubernetes"
    )]
    pub(crate) manager_namespace: String,
}

impl ManagerArgs {
    /// The flag's id in clap.
    pub(crate) const NAMESPACE: &str = "manager_namespace";

    /// Returns whether the flag names another namespace than the usual one.
    pub(crate) fn are_given(&self) -> bool {
        self.manager_namespace != MANAGER_NAMESPACE
    }
}

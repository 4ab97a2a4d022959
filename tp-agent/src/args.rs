//! The agent's command line; its node and its pod come from the environment.

use std::path::PathBuf;

use clap::Parser;
use tp_core::environment::filter::NamePattern;
use tp_proto::crd::MANAGER_NAMESPACE;

use crate::facts::Rules;

/// The node agent of tp. `tp install` runs it.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct AgentArgs {
    /// The node whose pods are redirected
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Our own pod
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,

    /// The namespace of the traffic manager
    #[arg(long, env = "MANAGER_NAMESPACE", default_value = MANAGER_NAMESPACE)]
    pub manager_namespace: String,

    /// Where tp-agentd listens
    #[arg(long, default_value = "/run/tp-agent/agentd.sock")]
    pub agentd_socket: PathBuf,

    /// The token to show to traffic managers
    #[arg(long, default_value = "/var/run/secrets/tp/manager/token")]
    pub token_file: PathBuf,

    /// Serve intercepts in kube-system too
    #[arg(long)]
    pub allow_system: bool,

    /// Serve intercepts in these namespaces alone
    #[arg(long, value_delimiter = ',')]
    pub intercept_namespaces: Vec<String>,

    /// Never hand out variables of these names: NAME, or its beginning with a * behind
    #[arg(long, value_delimiter = ',')]
    pub env_exclude: Vec<NamePattern>,
}

impl AgentArgs {
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            manager_namespace: self.manager_namespace.clone(),
            allow_system: self.allow_system,
            only: self.intercept_namespaces.iter().cloned().collect(),
            excluded_names: self.env_exclude.clone(),
        }
    }
}

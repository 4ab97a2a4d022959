//! The manager's command line; its pod's identity comes from the environment.

use clap::Parser;
use tp_proto::allow::Allow;

/// The traffic manager of tp. `tp install` runs it.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub(crate) struct Args {
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,

    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) pod_namespace: String,

    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub(crate) node_name: String,

    /// Destinations of the cluster itself that users may reach
    #[arg(long)]
    pub(crate) allow: Vec<Allow>,
}

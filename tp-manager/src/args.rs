//! The manager's command line; its pod's identity comes from the environment.

use clap::Parser;
use tp_core::intercept::holders::DISCONNECTED_AFTER;
use tp_proto::{allow::Allow, crd::RELEASE_SECONDS};

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

    /// How long an intercept whose workstation is away keeps its ports from others
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = DISCONNECTED_AFTER.as_secs(),
        value_parser = clap::value_parser!(u64).range(RELEASE_SECONDS)
    )]
    pub(crate) release_after_seconds: u64,
}

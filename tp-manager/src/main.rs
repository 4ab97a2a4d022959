//! The traffic manager: the tunnel's end in the cluster.
//!
//! `index` turns Kubernetes objects into the `model`; `grpc` and `gateway` serve sessions from it.
//! `sessions` and `policy` decide who connects, `access` what they reach. `intercepts` knows who
//! holds which port, and `agents` serves the agents of the nodes from it. It holds no state that
//! the API server does not: any replica can serve any session.

#![forbid(unsafe_code)]

mod access;
mod agents;
mod args;
mod disconnected;
mod gateway;
mod grpc;
mod health;
mod housekeeping;
mod index;
mod intercepts;
mod model;
mod policy;
mod publish;
mod runtime;
mod sessions;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("TP_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();

    tp_process::raise_descriptors();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = runtime
        .map_err(anyhow::Error::new)
        .and_then(|runtime| runtime.block_on(runtime::run(args)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Manager cannot go on");
            ExitCode::FAILURE
        }
    }
}

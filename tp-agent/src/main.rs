//! The node agent's process.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use tp_agent::AgentArgs;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = AgentArgs::parse();
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

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime
        .map_err(anyhow::Error::new)
        .and_then(|runtime| runtime.block_on(tp_agent::run(args)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Agent cannot go on");
            ExitCode::FAILURE
        }
    }
}

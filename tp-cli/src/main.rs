//! `tp`: reads the command line, starts what is missing, asks the session, prints the answer.
//!
//! It holds no state. Only commands such as `tp install`, `tp grant` and `tp check` connect to the
//! cluster.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

use crate::{cli::Cli, output::Output};

mod cli;
mod client;
mod cluster_args;
mod cmd;
mod exit;
#[cfg(test)]
mod fake_api_server;
mod files;
mod install;
mod kubeconfig;
mod output;
mod progress;
mod redact;
mod root_daemon;
mod signals;
mod spawn;
mod state;
mod tips;
mod values;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(error, std::env::args_os()),
    };
    let output = Output::new(cli.output);

    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error), output),
    };
    let result = runtime.block_on(cmd::run(cli.command, output));
    // Background tasks must not delay the exit.
    runtime.shutdown_background();

    match result {
        Ok(code) => code,
        Err(error) => exit::report(&error, output),
    }
}

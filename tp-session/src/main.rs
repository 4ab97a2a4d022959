//! `tp-session`: serves one user, the tunnel, the relay and names. Started by `tp connect`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tp_session::SessionArgs;

#[derive(Debug, Parser)]
#[command(
    name = "tp-session",
    version = tp_core::VERSION,
    about = "A user's session of tp, which `tp connect` starts"
)]
struct Args {
    #[command(flatten)]
    session: SessionArgs,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tp-session: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    // The hooks do not steer a process of this name, whatever its file is called.
    rustix::thread::set_name(tp_root_api::PROCESS_NAME).context("cannot name this process")?;
    // Files that a session writes are for its user alone.
    tp_process::background::enter(0o077);

    tp_session::run(args.session)
}

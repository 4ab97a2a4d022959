//! `tp-session`: serves one user, the tunnel, the relay and names. Started by `tp connect`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tp_session::{KEEPER_FLAG, SessionArgs};

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
    let run = match std::env::args_os().nth(1) {
        Some(flag) if flag == KEEPER_FLAG => keep(),
        _ => run(Args::parse()),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tp-session: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Another end than that of the session's terminal ends this process.
fn keep() -> anyhow::Result<()> {
    rustix::thread::set_name(c"tp-keeper").context("cannot name this process")?;
    tp_process::background::enter(0o077);

    tp_session::keep_files(std::io::stdin()).context("a file was not removed")
}

fn run(args: Args) -> anyhow::Result<()> {
    // The hooks do not steer a process of this name, whatever its file is called.
    rustix::thread::set_name(tp_root_api::PROCESS_NAME).context("cannot name this process")?;
    // Files that a session writes are for its user alone.
    tp_process::background::enter(0o077);

    tp_session::run(args.session)
}

//! `tp-daemon`: the root daemon (`root`), a user's session (`session`), and the installation of
//! both (`install`, `uninstall`). This file only chooses the role.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

mod background;
mod install;
mod log;
mod root;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;

#[derive(Debug, Parser)]
#[command(name = "tp-daemon", version = tp_proto::VERSION, about = "The background programs of tp")]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve sessions: load the data path and hand out its descriptors. Needs root.
    Root(root::RootArgs),
    /// Serve one user: the tunnel, the relay and names. Started by `tp connect`.
    Session(tp_session::SessionArgs),
    /// Install the programs and the system service. Needs root.
    Install(install::InstallArgs),
    /// Remove what `install` installed. Needs root.
    Uninstall(install::UninstallArgs),
}

fn main() -> ExitCode {
    let result = match Args::parse().role {
        Role::Root(args) => named().and_then(|()| root::run(args)),
        Role::Session(args) => named().and_then(|()| {
            // What a session writes is its user's.
            background::enter(0o077);
            tp_session::run(args)
        }),
        Role::Install(args) => install::run(args),
        Role::Uninstall(args) => install::run_uninstall(args),
    };

    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tp-daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the name that keeps this process from being steered, whatever its file is called.
fn named() -> anyhow::Result<()> {
    rustix::thread::set_name(tp_proto::root::PROCESS_NAME).context("cannot name this process")
}

//! `tp-daemon`: the root daemon (`root`), and the installation of a release (`install`,
//! `uninstall`). This file only chooses the role.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

mod background;
mod closer;
mod confined;
mod connection;
mod context;
mod datapath;
mod group;
mod install;
mod log;
mod packet;
mod peer;
mod request_error;
mod root;
mod scope;
mod server;
mod sudo;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;
mod wait;

#[derive(Debug, Parser)]
#[command(
    name = "tp-daemon",
    version = tp_core::VERSION,
    about = "The root daemon of tp, and its installation"
)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve sessions: load the data path and hand out its descriptors. Needs root.
    Root(root::RootArgs),
    /// Install the programs and the system service. Needs root.
    Install(install::InstallArgs),
    /// Remove what `install` installed. Needs root.
    Uninstall(install::UninstallArgs),
    /// What a `tp` asks for that is older than the program tp-session.
    #[command(hide = true)]
    Session,
}

fn main() -> ExitCode {
    let result = match Args::parse().role {
        Role::Root(args) => set_process_name().and_then(|()| root::run(args)),
        Role::Install(args) => install::run(args),
        Role::Uninstall(args) => install::run_uninstall(args),
        Role::Session => refuse_session(),
    };

    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tp-daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse_session() -> anyhow::Result<()> {
    bail!(
        "sessions are served by the program tp-session, which this `tp` is too old to know: use \
         the `tp` of the release {} that this tp-daemon is of",
        tp_core::VERSION
    )
}

/// Sets the name that exempts this process from steering, whatever its file is called.
fn set_process_name() -> anyhow::Result<()> {
    rustix::thread::set_name(tp_root_api::PROCESS_NAME).context("cannot name this process")
}

//! `tp-agentd`: the part of the node agent that has the power. It finds pods, makes sockets and attaches
//! eBPF in their network namespaces, and reads environments, for `tp-agent` alone. It parses nothing
//! that came from a network.

#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::Parser;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tracing::Level;

mod cgroup;
mod connection;
mod diag;
mod earlier;
mod environ;
mod handouts;
mod log;
mod netns;
mod networks;
mod own_addresses;
mod pod_error;
mod pods;
mod powers;
mod redirects;
mod server;

/// The inode of the namespace that the kernel starts with (`PROC_CGROUP_INIT_INO` of
/// include/linux/proc_ns.h).
const INITIAL_CGROUPS: u64 = 0xEFFF_FFFB;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The part of tp's node agent that has the power.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to listen for the agent.
    #[arg(long, default_value = "/run/tp-agent/agentd.sock")]
    socket: PathBuf,
    /// The user of the agent; nobody else but root is served.
    #[arg(long, default_value_t = 65532)]
    peer_uid: u32,
    /// The cgroup in which the kubelet keeps its pods, if our own does not show it.
    #[arg(long)]
    pod_cgroups: Option<String>,
    /// Write as much as this to standard error: error, warn, info, debug or trace.
    #[arg(long, env = "TP_LOG", default_value = "info")]
    log: Level,
    /// Where the processes of the node are.
    #[arg(long, default_value = "/proc", hide = true)]
    proc: PathBuf,
}

fn main() -> ExitCode {
    let Err(error) = run(Args::parse());
    eprintln!("tp-agentd: {error:#}");

    ExitCode::FAILURE
}

/// Serves until something fails.
fn run(args: Args) -> anyhow::Result<Infallible> {
    tracing::subscriber::set_global_default(log::Lines { level: args.log })
        .context("cannot log")?;
    raise_limits();
    enter_cgroups(&args.proc)?;
    let processes = pods::Processes::new(args.proc, args.pod_cgroups.as_deref())?;
    let listener = server::listen_at(&args.socket)?;
    tracing::info!("Agent may connect");

    let error = server::serve(&listener, args.peer_uid, &Arc::new(processes));
    Err(error).context("cannot accept connections any more")
}

/// A redirect takes some ten descriptors, and until Linux 5.11 its maps take memory that counts as locked.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let wanted = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(resource, wanted) {
            tracing::warn!(?resource, %error, "Limit stays as it is");
        }
    }
}

/// Moves this process into the node's cgroup namespace: in one of its own, it sees the paths of others
/// from its own cgroup ("/../..").
fn enter_cgroups(proc: &Path) -> anyhow::Result<()> {
    let own = proc.join("self/ns/cgroup");
    match fs::metadata(&own) {
        // Kernels without such namespaces.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => {
            let metadata = metadata.with_context(|| format!("cannot read {}", own.display()))?;
            if metadata.ino() == INITIAL_CGROUPS {
                return Ok(());
            }
        }
    }
    let path = proc.join("1/ns/cgroup");
    let entered = File::open(&path).and_then(|file| {
        let cgroups = Some(LinkNameSpaceType::ControlGroup);
        Ok(move_into_link_name_space(file.as_fd(), cgroups)?)
    });

    entered.with_context(|| {
        format!(
            "cannot enter {}: tp-agentd needs hostPID, CAP_SYS_ADMIN and CAP_SYS_PTRACE",
            path.display()
        )
    })
}

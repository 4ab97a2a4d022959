//! The root role: makes the data path of a session and hands its descriptors over.
//!
//! It loads programs, makes namespaces and links, and does nothing else: no TLS, no kubeconfig,
//! no parsing of anything that came from a network. A session's connection is its lease; when it
//! closes, everything made for it is dropped.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, lchown},
    },
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::{
    event::poll,
    fs::Mode,
    net::{SocketAddrUnix, SocketFlags, SocketType, bind, listen},
    process::umask,
    time::Timespec,
};
use tp_process::lock::{Lock, Occupant, SocketFile, occupant};
use tp_root_api::wire;

use crate::{
    background, confined,
    context::{Context, Lifetime},
    datapath::{Tuning, machine::Machine, programs::Programs, quota::Quota},
    group, log,
    peer::Audience,
    scope::Hierarchy,
    server::RootServer,
    sudo,
};

const BACKLOG: i32 = 64;
/// Longest wait for the right to bind the socket.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

#[derive(Debug, clap::Args)]
pub(crate) struct RootArgs {
    /// Serve only the user who called sudo, and end with that user's last session.
    #[arg(long)]
    sudo: bool,

    /// Go on in the background, and return once that needs neither sudo nor its terminal.
    #[arg(long, hide = true)]
    detach: bool,

    /// Tell on standard output, and close it, when that is so.
    #[arg(long, hide = true)]
    detached: bool,

    /// Where to listen.
    #[arg(long, hide = true, env = "TP_ROOT_SOCKET", default_value = tp_root_api::SOCKET_PATH)]
    socket: PathBuf,

    /// Whose members are served besides root.
    #[arg(long, hide = true, default_value = "tp")]
    group: String,

    /// At most that many aliases in a session, a power of two from 512.
    #[arg(long, hide = true, value_name = "COUNT", value_parser = alias_count)]
    alias_count: Option<u32>,

    /// Length of the quarantine before an alias stands for another address.
    #[arg(long, hide = true, value_name = "MILLISECONDS")]
    alias_quarantine: Option<u64>,
}

impl RootArgs {
    fn tuning(&self) -> Tuning {
        let usual = Tuning::default();

        Tuning {
            alias_count: self.alias_count.unwrap_or(usual.alias_count),
            quarantine: self
                .alias_quarantine
                .map_or(usual.quarantine, Duration::from_millis),
        }
    }
}

fn alias_count(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count: &u32| count.is_power_of_two() && (512..=65536).contains(count))
        .ok_or_else(|| "a power of two from 512 to 65536".to_owned())
}

pub(crate) fn run(args: RootArgs) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the root daemon needs root: start it with `sudo tp-daemon root --sudo`");
    }
    let socket = std::path::absolute(&args.socket).context("the socket needs a path")?;
    if args.detach {
        return background::detach("--detach", "--detached");
    }
    tp_process::background::enter(0o022);
    log::start();
    // Each session takes about sixteen, and there may be as many as the maps have room for.
    tp_process::raise_descriptors();

    let (admission, lifetime) = if args.sudo {
        let uid = sudo::check()?;
        (Audience::Only { uid }, Lifetime::WithLastSession)
    } else {
        let gid = group_id(&args.group)?;
        (Audience::Group { gid }, Lifetime::UntilStopped)
    };
    confined::check_capabilities()?;
    let programs = Programs::new(tp_ebpf_loader::kernel_offsets()?, Hierarchy::find()?);
    let context = Context {
        machine: Arc::new(Machine::new(programs)),
        lifetime,
        tuning: args.tuning(),
        quota: Arc::new(Quota::new()),
        has_served: AtomicBool::new(false),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (listener, _file) = open_socket(&socket, admission)?;
    tracing::info!(version = tp_core::VERSION, "Root daemon is ready");
    if args.detached {
        background::report_detached().context("cannot let go of standard output")?;
    }

    runtime.block_on(async { RootServer::new(listener, admission, context)?.run().await })
}

/// Listens where only the served users may connect, unless another root daemon listens there.
/// Replaces the socket of one that died.
fn open_socket(path: &Path, admission: Audience) -> anyhow::Result<(OwnedFd, SocketFile)> {
    let cannot_listen = || format!("cannot listen at {}", path.display());
    let directory = path.parent().context("the socket needs a directory")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(cannot_listen)?;
    let lock_path = path.with_extension("lock");
    // While another process binds, its new socket looks like a stale one.
    let _lock = lock(&lock_path).with_context(cannot_listen)?;
    match occupant(path, SocketType::SEQPACKET).with_context(cannot_listen)? {
        Occupant::Nobody => {}
        Occupant::Stale => fs::remove_file(path).with_context(cannot_listen)?,
        Occupant::Living => bail!(
            "{}: another root daemon serves there, or something else is in the way",
            cannot_listen()
        ),
    }

    let (uid, gid, mode) = match admission {
        Audience::Group { gid: Some(gid) } => (0, gid, 0o660),
        Audience::Group { gid: None } => (0, 0, 0o600),
        Audience::Only { uid } => (uid, 0, 0o600),
    };
    let address = SocketAddrUnix::new(path).with_context(cannot_listen)?;
    let socket = wire::socket(SocketFlags::empty()).with_context(cannot_listen)?;
    // By the umask and by lchown(2): the target of a link in place of the socket keeps its owner and
    // mode.
    umask(Mode::from_raw_mode(!mode & 0o777));
    bind(&socket, &address).with_context(cannot_listen)?;
    lchown(path, Some(uid), Some(gid)).with_context(cannot_listen)?;
    listen(&socket, BACKLOG).with_context(cannot_listen)?;
    let file = SocketFile::of(path, &lock_path).with_context(cannot_listen)?;

    Ok((socket, file))
}

/// Takes the lock, which other root daemons hold only while they bind.
fn lock(path: &Path) -> anyhow::Result<Lock> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        if let Some(lock) = Lock::try_acquire(path)? {
            return Ok(lock);
        }
        if Instant::now() >= end {
            bail!("another root daemon is starting");
        }
        // No descriptor becomes ready when the lock is released.
        let _ = poll(&mut [], Some(&LOCK_POLL_INTERVAL));
    }
}

/// The id of a group: a number as it is, a name looked up.
fn group_id(name: &str) -> anyhow::Result<Option<u32>> {
    match name.parse() {
        Ok(gid) => Ok(Some(gid)),
        Err(_) => group::find(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name_or_its_number() {
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("roo").unwrap(), None);
        assert_eq!(group_id("901").unwrap(), Some(901));
    }
}

//! The root role: makes the data path of a session and hands its descriptors over.
//!
//! It loads programs, makes namespaces and links, and does nothing else: no TLS, no kubeconfig,
//! no parsing of anything that came from a network. A session's connection is its lease; when it
//! closes, everything made for it goes.

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
    datapath::{Tuning, living::Living},
    group, log,
    peer::Audience,
    scope,
    server::RootServer,
    sudo,
};

const BACKLOG: i32 = 64;
/// Longest wait for the right to bind the socket.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Timespec = Timespec {
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

    let (admission, lifetime) = if args.sudo {
        let uid = sudo::check()?;
        (Audience::Only { uid }, Lifetime::WithLastSession)
    } else {
        let gid = group_id(&args.group)?;
        (Audience::Group { gid }, Lifetime::UntilStopped)
    };
    confined::check_capabilities()?;
    let context = Context {
        offsets: tp_ebpf_loader::kernel_offsets()?,
        hierarchy: scope::Hierarchy::find()?,
        lifetime,
        tuning: args.tuning(),
        living: Arc::new(Living::new()),
        has_served: AtomicBool::new(false),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (listener, _file) = open_socket(&socket, admission)?;
    tracing::info!(version = tp_core::VERSION, "Root daemon is ready");
    if args.detached {
        background::tell_detached().context("cannot let go of standard output")?;
    }

    runtime.block_on(async { RootServer::new(listener, admission, context)?.run().await })
}

/// Listens where only those who are served may connect, unless another root daemon does. The
/// socket of one that died makes way.
fn open_socket(path: &Path, admission: Audience) -> anyhow::Result<(OwnedFd, SocketFile)> {
    let place = || format!("cannot listen at {}", path.display());
    let directory = path.parent().context("the socket needs a directory")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(place)?;
    let lock_path = path.with_extension("lock");
    // While somebody else binds, nobody can tell a socket that is stale from one that is new.
    let _lock = lock(&lock_path).with_context(place)?;
    match occupant(path, SocketType::SEQPACKET).with_context(place)? {
        Occupant::Nobody => {}
        Occupant::Stale => fs::remove_file(path).with_context(place)?,
        Occupant::Living => bail!(
            "{}: another root daemon serves there, or something else is in the way",
            place()
        ),
    }

    let (uid, gid, mode) = match admission {
        Audience::Group { gid: Some(gid) } => (0, gid, 0o660),
        Audience::Group { gid: None } => (0, 0, 0o600),
        Audience::Only { uid } => (uid, 0, 0o600),
    };
    let address = SocketAddrUnix::new(path).with_context(place)?;
    let socket = wire::socket(SocketFlags::empty()).with_context(place)?;
    // By the mask and without following links: nothing that somebody puts in place of the socket
    // changes hands.
    umask(Mode::from_raw_mode(!mode & 0o777));
    bind(&socket, &address).with_context(place)?;
    lchown(path, Some(uid), Some(gid)).with_context(place)?;
    listen(&socket, BACKLOG).with_context(place)?;
    let file = SocketFile::of(path, &lock_path).with_context(place)?;

    Ok((socket, file))
}

/// Others hold it for as long as it takes to bind a socket.
fn lock(path: &Path) -> anyhow::Result<Lock> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        if let Some(lock) = Lock::try_acquire(path)? {
            return Ok(lock);
        }
        if Instant::now() >= end {
            bail!("another root daemon is starting");
        }
        // A pause; there is no descriptor to wait for.
        let _ = poll(&mut [], Some(&LOCK_LOOK));
    }
}

/// Looks a group up; a number stands for itself.
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

//! Accepts the agent's connections. No other program has business here.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    fs::Mode,
    io::Errno,
    net::{
        SocketAddrUnix, SocketFlags, accept_with, bind, listen,
        sockopt::{Timeout, set_socket_timeout, socket_peercred},
    },
    process::umask,
};

use crate::{connection::AgentConnection, pods::Processes, redirects::AllRedirects};

/// One agent, and the one before it that is about to end.
const MAX_CONNECTIONS: usize = 4;
const BACKLOG: i32 = 4;
/// An agent that has not read its reply by then loses its connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Between attempts to accept while the machine lacks descriptors or memory.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Listens at `path`. Whoever reaches it may connect: whom we serve goes by the user that the kernel
/// names. To give the socket away would take CAP_CHOWN.
pub(crate) fn listen_at(path: &Path) -> anyhow::Result<OwnedFd> {
    // What an earlier process left. Neither this nor bind(2) follows a link.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = tp_packet::socket(SocketFlags::empty())?;
    let made = || -> io::Result<()> {
        let address = SocketAddrUnix::new(path)?;
        // By the umask: chmod(2) would follow a link that somebody put in the place of the socket.
        let before = umask(Mode::XUSR | Mode::XGRP | Mode::XOTH);
        let bound = bind(&listener, &address);
        umask(before);
        bound?;
        Ok(listen(&listener, BACKLOG)?)
    };
    made().with_context(|| format!("cannot listen at {}", path.display()))?;

    Ok(listener)
}

/// Serves until the listener is of no use any more. Everything is held by descriptors: a signal ends the
/// process, and all redirects with it.
pub(crate) fn serve(listener: &OwnedFd, peer: u32, processes: &Arc<Processes>) -> io::Error {
    let open = Arc::new(AtomicUsize::new(0));
    let redirects = Arc::new(AllRedirects::default());
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                if let Err(error) = start(socket, peer, processes, &redirects, &open) {
                    tracing::warn!(%error, "Connection is not served");
                }
            }
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                tracing::warn!(%error, "Cannot accept a connection at the moment");
                #[expect(
                    clippy::disallowed_methods,
                    reason = "nothing is notified when descriptors or memory are free again"
                )]
                thread::sleep(ACCEPT_RETRY_INTERVAL);
            }
            Err(error) => return error.into(),
        }
    }
}

fn start(
    socket: OwnedFd,
    peer: u32,
    processes: &Arc<Processes>,
    redirects: &Arc<AllRedirects>,
    open: &Arc<AtomicUsize>,
) -> io::Result<()> {
    let user = socket_peercred(&socket)?.uid.as_raw();
    if user != peer && user != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is of another user than the agent's",
        ));
    }
    set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT))?;
    let place = Place::take(open).ok_or_else(|| io::Error::other("there are too many"))?;
    let connection = AgentConnection::new(socket, Arc::clone(processes), Arc::clone(redirects));
    thread::Builder::new()
        .name("connection".to_owned())
        .spawn(move || {
            let served = connection.serve();
            drop(place);
            match served {
                Ok(unwanted) if unwanted.is_empty() => {}
                Ok(unwanted) => {
                    tracing::warn!("Connection ends: descriptors came with a request");
                    // May block: all else has ended.
                    drop(unwanted);
                }
                Err(error) => tracing::warn!(%error, "Connection broke"),
            }
        })?;

    Ok(())
}

/// One of the connections that there may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        // Only this thread adds.
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            return None;
        }
        open.fetch_add(1, Ordering::Relaxed);

        Some(Self(Arc::clone(open)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

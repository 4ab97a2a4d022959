//! The session's end of the socket.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use rustix::{net::SocketType, process::geteuid};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

use tp_process::lock::{Lock, Occupant, SocketFile, occupant};

use crate::{IpcError, check_directory, is_session_socket, make_directory, parent, socket_error};

const LOCK_NAME: &str = "session.lock";
/// Another session holds the lock while it binds its socket.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(5);
const FILE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A stream of connections from processes of the same user, to be handed to tonic's
/// `serve_with_incoming`. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

impl Listener {
    /// Makes the directory if needed and listens, unless another session does. Sockets of sessions
    /// that were killed are removed.
    ///
    /// # Errors
    ///
    /// [`IpcError::InUse`] if another session of this user listens, or does not stop starting within
    /// 5 s; [`IpcError::Directory`]; [`IpcError::Socket`].
    pub async fn bind(path: &Path) -> Result<Self, IpcError> {
        let dir = parent(path);
        make_directory(dir)?;
        check_directory(dir)?;

        let failed = |source| socket_error(path, source);
        let lock_path = dir.join(LOCK_NAME);
        let _lock = lock(&lock_path, path).await?;
        sweep(dir).map_err(failed)?;
        if occupant(path, SocketType::STREAM).map_err(failed)? != Occupant::Nobody {
            return Err(IpcError::InUse {
                path: path.to_owned(),
            });
        }
        let listener = UnixListener::bind(path).map_err(failed)?;

        Ok(Self {
            listener,
            file: Arc::new(SocketFile::of(path, &lock_path).map_err(failed)?),
        })
    }

    /// Resolves when no peer can reach the listener any more: its socket file was replaced, or removed,
    /// for example with the runtime directory of a user who logged out.
    pub fn lost(&self) -> impl Future<Output = ()> + use<> {
        let file = Arc::downgrade(&self.file);
        async move {
            while file.upgrade().is_some_and(|file| file.is_there()) {
                sleep(FILE_POLL_INTERVAL).await;
            }
        }
    }

    /// Waits for the next connection of a process of the same user; others are closed.
    ///
    /// # Errors
    ///
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<PeerStream> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<PeerStream>> {
        loop {
            let (stream, _) = std::task::ready!(self.listener.poll_accept(cx))?;
            match super::peer_uid(&stream) {
                Ok(uid) if uid == geteuid().as_raw() => {
                    return Poll::Ready(Ok(PeerStream::new(stream)));
                }
                Ok(uid) => tracing::debug!(uid, "Refused a process of another user"),
                Err(error) => tracing::debug!(%error, "Cannot tell whose process this is"),
            }
        }
    }
}

impl Stream for Listener {
    type Item = io::Result<PeerStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(cx).map(Some)
    }
}

async fn lock(lock_path: &Path, socket: &Path) -> Result<Lock, IpcError> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        let lock = Lock::try_acquire(lock_path).map_err(|error| socket_error(lock_path, error))?;
        match lock {
            Some(lock) => return Ok(lock),
            None if Instant::now() < end => sleep(LOCK_POLL_INTERVAL).await,
            None => {
                let path = socket.to_owned();
                return Err(IpcError::InUse { path });
            }
        }
    }
}

/// Removes the sockets of sessions that have died.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path: PathBuf = entry.path();
        if is_session_socket(&entry.file_name())
            && occupant(&path, SocketType::STREAM)? == Occupant::Stale
        {
            fs::remove_file(path)?;
        }
    }

    Ok(())
}

/// A connection of a process of the same user.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    presence: PeerPresence,
    _gone: DropGuard,
}

/// Identifies a peer of the session, and resolves when its connection closes; the kernel closes it when
/// the peer dies.
#[derive(Debug, Clone)]
pub struct PeerPresence {
    id: u64,
    pid: Option<u32>,
    gone: CancellationToken,
}

impl PeerPresence {
    fn new(pid: Option<u32>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);

        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            pid,
            gone: CancellationToken::new(),
        }
    }

    /// The number of the peer, in the order of the connections.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The process that connected, if it is visible in this PID namespace.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Resolves when the peer has closed its connection or died.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl PeerStream {
    fn new(stream: UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        let presence = PeerPresence::new(pid.filter(|pid| *pid != 0));

        Self {
            stream,
            _gone: presence.gone.clone().drop_guard(),
            presence,
        }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerPresence;

    fn connect_info(&self) -> PeerPresence {
        self.presence.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener as StdListener,
    };

    use super::*;

    const NAME: &str = "session-1.sock";

    #[tokio::test]
    async fn a_directory_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tp_dir = dir.path().join("tp");
        fs::create_dir(&tp_dir).unwrap();
        fs::set_permissions(&tp_dir, fs::Permissions::from_mode(0o755)).unwrap();

        let error = Listener::bind(&tp_dir.join(NAME)).await.unwrap_err();

        assert!(matches!(error, IpcError::Directory { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_symbolic_link_in_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("tp"));
        fs::DirBuilder::new().mode(0o700).create(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();

        let error = Listener::bind(&link.join(NAME)).await.unwrap_err();

        assert!(matches!(error, IpcError::Directory { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_second_listener_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(NAME);
        let first = Listener::bind(&path).await.unwrap();

        let second = Listener::bind(&path).await;
        assert!(matches!(second, Err(IpcError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        Listener::bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_whose_file_is_gone_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(NAME);
        let listener = Listener::bind(&path).await.unwrap();
        let lost = listener.lost();
        tokio::pin!(lost);
        assert!(futures::poll!(&mut lost).is_pending());

        fs::remove_dir_all(dir.path().join("tp")).unwrap();

        tokio::time::timeout(3 * FILE_POLL_INTERVAL, lost)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn of_many_listeners_at_once_one_remains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(NAME);
        make_directory(parent(&path)).unwrap();
        drop(StdListener::bind(&path).unwrap());

        let bound = futures::future::join_all((0..8).map(|_| Listener::bind(&path))).await;

        let winners: Vec<_> = bound.into_iter().filter_map(Result::ok).collect();
        let [winner] = winners.as_slice() else {
            panic!("{} listen", winners.len());
        };
        let (accepted, connected) = tokio::join!(winner.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
    }

    #[tokio::test]
    async fn sockets_of_sessions_that_died_go() {
        let dir = tempfile::tempdir().unwrap();
        let tp_dir = dir.path().join("tp");
        make_directory(&tp_dir).unwrap();
        let (dead, living) = (tp_dir.join("session-2.sock"), tp_dir.join("session-3.sock"));
        drop(StdListener::bind(&dead).unwrap());
        let _listener = StdListener::bind(&living).unwrap();

        let _ours = Listener::bind(&tp_dir.join(NAME)).await.unwrap();

        assert!(!dead.exists());
        assert!(living.exists());
    }

    #[tokio::test]
    async fn the_listener_hears_when_a_peer_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(NAME);
        let listener = Listener::bind(&path).await.unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(&path));
        let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
        let presence = accepted.connect_info();

        drop(connected);
        drop(accepted);

        presence.gone().await;
    }
}

//! The unix socket between `tp` and the session of the same user, and where both write logs.
//!
//! The socket lies in a directory that only its user may enter, and both ends check the other's
//! uid: a directory under `/tmp` may have been made by somebody else first.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use hyper_util::rt::TokioIo;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    process::geteuid,
};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

pub mod owner;

const SOCKET_NAME: &str = "session.sock";
const LOCK_NAME: &str = "session.lock";

#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    #[error("{path} cannot be used: {problem}")]
    Directory { path: PathBuf, problem: String },
    #[error("no session listens at {path}")]
    NoSession { path: PathBuf },
    #[error("another session of this user is running ({path} is in use)")]
    InUse { path: PathBuf },
    #[error("{path} belongs to another user's process (uid {uid})")]
    ForeignPeer { path: PathBuf, uid: u32 },
    #[error("cannot use {path}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the session does not answer")]
    Channel(#[source] tonic::transport::Error),
}

/// Where the session of this user listens: `$XDG_RUNTIME_DIR/tp/session.sock`, or
/// `/tmp/tp-UID/session.sock`. The directory need not exist yet.
pub fn socket_path() -> PathBuf {
    directory_in(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)).join(SOCKET_NAME)
}

fn directory_in(runtime_dir: Option<PathBuf>) -> PathBuf {
    match runtime_dir {
        Some(dir) if dir.is_absolute() && dir.is_dir() => dir.join("tp"),
        _ => PathBuf::from(format!("/tmp/tp-{}", geteuid().as_raw())),
    }
}

/// Logs of this user's programs: `$TP_STATE_DIR`, `$XDG_STATE_HOME/tp`, `~/.local/state/tp`, or
/// below `/tmp/tp-UID`. The directory need not exist yet.
pub fn state_dir() -> PathBuf {
    state_dir_in(|name| std::env::var_os(name).map(PathBuf::from))
}

fn state_dir_in(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());

    absolute("TP_STATE_DIR")
        .or_else(|| Some(absolute("XDG_STATE_HOME")?.join("tp")))
        .or_else(|| Some(absolute("HOME")?.join(".local/state/tp")))
        .unwrap_or_else(|| directory_in(None).join("state"))
}

/// Makes the directory of [`state_dir`] if needed, closed to others.
pub fn make_state_dir() -> Result<PathBuf, IpcError> {
    let dir = state_dir();
    make_directory(&dir)?;
    let shared = directory_in(None);
    if dir.starts_with(&shared) {
        check_directory(&shared)?;
    }

    Ok(dir)
}

/// A gRPC channel to the session behind `path`, which must be of the same user.
pub async fn connect(path: &Path) -> Result<Channel, IpcError> {
    check_directory(parent(path))?;
    let stream = UnixStream::connect(path).await.map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            // Reset: the session closed its socket while this connection waited there.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset => IpcError::NoSession { path },
            _ => IpcError::Socket { path, source },
        }
    })?;
    let uid = peer_uid(&stream).map_err(|source| socket_error(path, source))?;
    if uid != geteuid().as_raw() {
        let path = path.to_owned();
        return Err(IpcError::ForeignPeer { path, uid });
    }

    // One stream, one channel: when the session ends, the channel has ended too.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://session")
        .connect_with_connector(connector)
        .await
        .map_err(IpcError::Channel)
}

/// The session's end: a stream of connections from processes of the same user, to be handed to
/// tonic's `serve_with_incoming`. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Held for as long as the socket is ours.
    _lock: rustix::fd::OwnedFd,
}

impl Listener {
    /// Makes the directory if needed and listens; one session per user.
    pub fn bind(path: &Path) -> Result<Self, IpcError> {
        let dir = parent(path);
        make_directory(dir)?;
        check_directory(dir)?;

        let lock = lock(&dir.join(LOCK_NAME), path)?;
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(socket_error(path, error)),
        }
        let listener = UnixListener::bind(path).map_err(|source| socket_error(path, source))?;

        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The next connection of a process of the same user; others are hung up on.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        loop {
            let (stream, _) = std::task::ready!(self.listener.poll_accept(cx))?;
            match peer_uid(&stream) {
                Ok(uid) if uid == geteuid().as_raw() => return Poll::Ready(Ok(stream)),
                Ok(uid) => tracing::debug!(uid, "Refused a process of another user"),
                Err(error) => tracing::debug!(%error, "Cannot tell whose process this is"),
            }
        }
    }
}

impl Stream for Listener {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(cx).map(Some)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "Cannot remove the session's socket");
        }
    }
}

fn lock(lock_path: &Path, socket: &Path) -> Result<rustix::fd::OwnedFd, IpcError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(lock_path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| socket_error(lock_path, errno.into()))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IpcError::InUse {
            path: socket.to_owned(),
        }),
        Err(errno) => Err(socket_error(lock_path, errno.into())),
    }
}

/// What is missing is made for this user alone; what is there stays as it is.
fn make_directory(dir: &Path) -> Result<(), IpcError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| IpcError::Directory {
            path: dir.to_owned(),
            problem: error.to_string(),
        })
}

/// Refuses a directory that somebody else could have made or may enter.
fn check_directory(dir: &Path) -> Result<(), IpcError> {
    let problem = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IpcError::NoSession {
                path: dir.join(SOCKET_NAME),
            });
        }
        Err(error) => error.to_string(),
        Ok(metadata) if !metadata.is_dir() => "it is not a directory".into(),
        Ok(metadata) if metadata.uid() != geteuid().as_raw() => {
            format!("it belongs to uid {}", metadata.uid())
        }
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            format!("its mode {:04o} lets others in", metadata.mode() & 0o7777)
        }
        Ok(_) => return Ok(()),
    };

    Err(IpcError::Directory {
        path: dir.to_owned(),
        problem,
    })
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(stream.peer_cred()?.uid())
}

fn socket_error(path: &Path, source: io::Error) -> IpcError {
    let path = path.to_owned();

    IpcError::Socket { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn without_a_runtime_directory_the_socket_lies_below_tmp() {
        let expected = PathBuf::from(format!("/tmp/tp-{}", geteuid().as_raw()));

        assert_eq!(directory_in(None), expected);
        assert_eq!(directory_in(Some("relative".into())), expected);
        assert_eq!(directory_in(Some("/".into())), PathBuf::from("/tp"));
    }

    #[test]
    fn logs_lie_where_the_user_keeps_state() {
        let dir_with = |variables: &[(&str, &str)]| {
            state_dir_in(|name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(PathBuf::from(value))
            })
        };
        let home = ("HOME", "/home/dev");
        let state_home = ("XDG_STATE_HOME", "/state");
        let own = ("TP_STATE_DIR", "/own");

        assert_eq!(dir_with(&[home, state_home, own]), Path::new("/own"));
        assert_eq!(dir_with(&[home, state_home]), Path::new("/state/tp"));
        let at_home = Path::new("/home/dev/.local/state/tp");
        assert_eq!(dir_with(&[home, ("XDG_STATE_HOME", "state")]), at_home);
        assert_eq!(dir_with(&[]), directory_in(None).join("state"));
    }

    #[test]
    fn directories_are_made_for_their_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("state/tp");

        make_directory(&inner).unwrap();
        make_directory(&inner).unwrap();

        for made in [&inner, &dir.path().join("state")] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[tokio::test]
    async fn a_directory_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tp_dir = dir.path().join("tp");
        fs::create_dir(&tp_dir).unwrap();
        fs::set_permissions(&tp_dir, fs::Permissions::from_mode(0o755)).unwrap();

        let error = Listener::bind(&tp_dir.join(SOCKET_NAME)).unwrap_err();

        assert!(matches!(error, IpcError::Directory { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_symbolic_link_in_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("tp"));
        fs::DirBuilder::new().mode(0o700).create(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();

        let error = Listener::bind(&link.join(SOCKET_NAME)).unwrap_err();

        assert!(matches!(error, IpcError::Directory { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_second_listener_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(SOCKET_NAME);
        let first = Listener::bind(&path).unwrap();

        assert!(matches!(Listener::bind(&path), Err(IpcError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        Listener::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn nobody_listening_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(SOCKET_NAME);

        let error = connect(&path).await.unwrap_err();

        assert!(matches!(error, IpcError::NoSession { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_listener_accepts_its_own_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp").join(SOCKET_NAME);
        let listener = Listener::bind(&path).unwrap();

        let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(&path));

        assert!(accepted.is_ok() && connected.is_ok());
    }
}

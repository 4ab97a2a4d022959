//! The unix socket between `tp` and the session of the same user, and where both write logs.
//!
//! The socket lies in a directory that only its user may enter, and both ends check the other's
//! uid: a directory under `/tmp` may have been made by somebody else first.
//!
//! ```no_run
//! # async fn example() -> Result<(), tp_ipc::IpcError> {
//! // In the session.
//! let listener = tp_ipc::Listener::bind(&tp_ipc::socket_path()).await?;
//! // In `tp`: a gRPC channel.
//! let session = tp_ipc::connect(&tp_ipc::socket_path()).await?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustix::{
    fd::OwnedFd,
    net::SocketType,
    process::{Pid, PidfdFlags, geteuid, pidfd_open},
};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};
use tonic::transport::{Channel, Endpoint, Uri};

use tp_process::lock::{Lock, Occupant, occupant};

pub use listener::{Listener, PeerPresence, PeerStream};

mod listener;

const SOCKET_PREFIX: &str = "session";
const SOCKET_SUFFIX: &str = ".sock";
const START_LOCK: &str = "start.lock";
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// An error of the socket between `tp` and its session. `path` is the socket or its directory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "fields are what the message names")]
pub enum IpcError {
    /// The directory cannot be made, is somebody else's, or lets others in.
    #[error("{path} cannot be used: {problem}")]
    Directory { path: PathBuf, problem: String },
    /// No session listens at `path`.
    #[error("no session listens at {path}")]
    NoSession { path: PathBuf },
    /// Another session of this user listens at `path`.
    #[error("another session of this user is running ({path} is in use)")]
    InUse { path: PathBuf },
    /// A process of another user listens at `path`.
    #[error("{path} belongs to another user's process (uid {uid})")]
    ForeignPeer { path: PathBuf, uid: u32 },
    /// A system call failed.
    #[error("cannot use {path}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The other end does not speak gRPC.
    #[error("the session does not answer")]
    Channel(#[source] tonic::transport::Error),
}

/// The socket of this user's session in this network namespace:
/// `$XDG_RUNTIME_DIR/tp/session-INODE.sock`, or the same below `/tmp/tp-UID`. A session serves one
/// network namespace, whose inode number is in the name. The directory need not exist yet.
pub fn socket_path() -> PathBuf {
    let namespace = fs::metadata("/proc/self/ns/net").map(|metadata| metadata.ino());

    directory().join(socket_name(namespace.ok()))
}

fn socket_name(namespace: Option<u64>) -> String {
    match namespace {
        Some(inode) => format!("{SOCKET_PREFIX}-{inode}{SOCKET_SUFFIX}"),
        // Without /proc, namespaces cannot be told apart.
        None => format!("{SOCKET_PREFIX}{SOCKET_SUFFIX}"),
    }
}

fn is_session_socket(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(SOCKET_PREFIX) && name.ends_with(SOCKET_SUFFIX))
}

/// Returns whether a session of this user runs in another network namespace.
pub fn runs_elsewhere() -> bool {
    let own = socket_path();
    let Ok(entries) = fs::read_dir(parent(&own)) else {
        return false;
    };

    entries
        .filter_map(Result::ok)
        .filter(|entry| is_session_socket(&entry.file_name()) && entry.path() != own)
        .any(|entry| {
            matches!(
                occupant(&entry.path(), SocketType::STREAM),
                Ok(Occupant::Living)
            )
        })
}

/// Waits for the lock under which `tp` starts programs for this user; `None` if another `tp` holds it
/// for as long as `bound`.
///
/// # Errors
///
/// [`IpcError::Directory`] or [`IpcError::Socket`], if the lock cannot be made.
pub async fn acquire_start_lock(bound: Duration) -> Result<Option<Lock>, IpcError> {
    let dir = directory();
    make_directory(&dir)?;
    check_directory(&dir)?;
    let path = dir.join(START_LOCK);
    let end = Instant::now() + bound;
    loop {
        let lock = Lock::try_acquire(&path).map_err(|error| socket_error(&path, error))?;
        if lock.is_some() || Instant::now() >= end {
            return Ok(lock);
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn directory() -> PathBuf {
    directory_in(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

fn directory_in(runtime_dir: Option<PathBuf>) -> PathBuf {
    match runtime_dir {
        Some(dir) if dir.is_absolute() && dir.is_dir() && is_own(&dir) => dir.join("tp"),
        _ => PathBuf::from(format!("/tmp/tp-{}", geteuid().as_raw())),
    }
}

/// Returns whether this user owns `dir`, or its nearest existing ancestor: `sudo -E` and `su -m` keep
/// the variables of another user, in whose directories nothing of ours may be left.
fn is_own(dir: &Path) -> bool {
    let nearest = dir.ancestors().find_map(|dir| fs::metadata(dir).ok());

    nearest.is_some_and(|metadata| metadata.uid() == geteuid().as_raw())
}

/// The directory for logs of this user's programs: `$TP_STATE_DIR`, `$XDG_STATE_HOME/tp`,
/// `~/.local/state/tp`, or below `/tmp/tp-UID`. `XDG_STATE_HOME` and `HOME` count only if the user
/// owns them. The directory need not exist yet.
pub fn state_dir() -> PathBuf {
    state_dir_in(|name| std::env::var_os(name).map(PathBuf::from))
}

fn state_dir_in(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());

    let own = |name| absolute(name).filter(|path| is_own(path));

    absolute("TP_STATE_DIR")
        .or_else(|| Some(own("XDG_STATE_HOME")?.join("tp")))
        .or_else(|| Some(own("HOME")?.join(".local/state/tp")))
        .unwrap_or_else(|| directory_in(None).join("state"))
}

/// Makes the directory of [`state_dir`] if needed, closed to others.
///
/// # Errors
///
/// [`IpcError::Directory`].
pub fn make_state_dir() -> Result<PathBuf, IpcError> {
    let dir = state_dir();
    make_directory(&dir)?;
    let shared = directory_in(None);
    if dir.starts_with(&shared) {
        check_directory(&shared)?;
    }

    Ok(dir)
}

/// A gRPC channel to a session, and its process if that is visible in this PID namespace.
#[derive(Debug)]
pub struct SessionChannel {
    /// Ends with the session.
    pub channel: Channel,
    /// A pidfd (pidfd_open(2)).
    pub process: Option<OwnedFd>,
}

/// Connects to the session behind `path`, which must be of the same user.
///
/// # Errors
///
/// [`IpcError::NoSession`] if nothing listens, [`IpcError::ForeignPeer`] for another user's process, or
/// any other except [`IpcError::InUse`].
pub async fn connect(path: &Path) -> Result<SessionChannel, IpcError> {
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
    let peer = stream
        .peer_cred()
        .map_err(|source| socket_error(path, source))?;
    let uid = peer.uid();
    if uid != geteuid().as_raw() {
        let path = path.to_owned();
        return Err(IpcError::ForeignPeer { path, uid });
    }
    let process = peer
        .pid()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());

    // One stream, one channel: when the session ends, the channel has ended too.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://session")
        .connect_with_connector(connector)
        .await
        .map_err(IpcError::Channel)?;

    Ok(SessionChannel { channel, process })
}

/// Makes missing directories with mode 0700; existing ones stay as they are.
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
                path: dir.to_owned(),
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
    use super::*;

    #[test]
    fn a_network_namespace_has_a_socket_of_its_own() {
        assert_eq!(socket_name(Some(4_026_531_840)), "session-4026531840.sock");
        assert_ne!(socket_name(Some(1)), socket_name(Some(2)));
        for name in [socket_name(Some(1)), socket_name(None)] {
            assert!(is_session_socket(OsStr::new(&name)), "{name}");
        }
        assert!(!is_session_socket(OsStr::new("session.lock")));
    }

    #[test]
    fn without_a_runtime_directory_the_socket_lies_below_tmp() {
        let expected = PathBuf::from(format!("/tmp/tp-{}", geteuid().as_raw()));

        assert_eq!(directory_in(None), expected);
        assert_eq!(directory_in(Some("relative".into())), expected);
        let own = tempfile::tempdir().unwrap();
        assert_eq!(directory_in(Some(own.path().into())), own.path().join("tp"));
    }

    #[test]
    fn logs_lie_where_the_user_keeps_state() {
        let dir_with = |variables: &[(&str, &str)]| {
            state_dir_in(|name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(PathBuf::from(value))
            })
        };
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (home_path, state_path) = (path("home"), path("state"));
        let home = ("HOME", home_path.as_str());
        let state_home = ("XDG_STATE_HOME", state_path.as_str());
        let own = ("TP_STATE_DIR", "/own");

        assert_eq!(dir_with(&[home, state_home, own]), Path::new("/own"));
        assert_eq!(
            dir_with(&[home, state_home]),
            directory.path().join("state/tp")
        );
        let at_home = directory.path().join("home/.local/state/tp");
        assert_eq!(dir_with(&[home, ("XDG_STATE_HOME", "state")]), at_home);
        assert_eq!(dir_with(&[]), directory_in(None).join("state"));
    }

    #[test]
    fn nothing_is_left_in_the_directories_of_another_user() {
        // A directory of another user, which only root can make.
        let foreign = tempfile::tempdir().unwrap();
        let uid = geteuid().as_raw() + 1;
        if std::os::unix::fs::chown(foreign.path(), Some(uid), None).is_err() {
            assert_ne!(geteuid().as_raw(), 0);
            return;
        }
        let path = foreign.path().to_owned();
        let ours = directory_in(None);

        assert_eq!(directory_in(Some(path.clone())), ours);
        for name in ["HOME", "XDG_STATE_HOME"] {
            let of_another = |asked: &str| (asked == name).then(|| path.join("not/there"));
            assert_eq!(state_dir_in(of_another), ours.join("state"), "{name}");
        }
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
    async fn nobody_listening_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tp/session-1.sock");

        let error = connect(&path).await.unwrap_err();

        assert!(matches!(error, IpcError::NoSession { .. }), "{error}");
    }
}

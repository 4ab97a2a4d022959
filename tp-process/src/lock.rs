//! Locks that the kernel releases when their holder dies, and sockets whose listener has died.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

/// An exclusive lock on a file that only its user can open. The file stays: removing it would let
/// two processes hold the lock, one of them on an unlinked file.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

impl Lock {
    /// Takes the lock (flock(2)) without waiting; `None` if another process holds it.
    ///
    /// # Errors
    ///
    /// Those of open(2), also for a symbolic link at `path`, and of flock(2).
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::open(path, flags, mode)?;
        // A file that the umask has closed to everybody would stop every program after this one.
        let _ = rustix::fs::fchmod(&file, mode);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The state of a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// There is no file.
    Nobody,
    /// A socket whose listener has died.
    Stale,
    /// A socket with a listener, or a file that is not a socket.
    Living,
}

/// Probes a socket by a non-blocking connect(2); a busy listener counts as living. `kind` is the type
/// of the socket (unix(7)).
///
/// # Errors
///
/// Those of lstat(2) except ENOENT, and of socket(2).
pub fn occupant(path: &Path, kind: SocketType) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(Occupant::Living),
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::NOENT) => Ok(Occupant::Nobody),
        _ => Ok(Occupant::Living),
    }
}

/// The socket file of a listener, which is removed on drop unless another listener has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    lock: PathBuf,
    /// While it is open, no other file gets its inode number.
    file: OwnedFd,
}

impl SocketFile {
    /// The file of the socket that was bound to `path` while `lock` was held.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn of(path: &Path, lock: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;

        Ok(Self {
            path: path.to_owned(),
            lock: lock.to_owned(),
            file: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    fn remove(&self) -> io::Result<()> {
        // The holder of the lock finds the socket stale and replaces it.
        let Some(_lock) = Lock::try_acquire(&self.lock)? else {
            return Ok(());
        };
        if !self.is_there() {
            return Ok(());
        }

        fs::remove_file(&self.path)
    }

    /// Returns whether the file is still the one that was made; false if another file has its name.
    pub fn is_there(&self) -> bool {
        let same = || {
            let found = rustix::fs::lstat(&self.path)?;
            let ours = rustix::fs::fstat(&self.file)?;
            rustix::io::Result::Ok((found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino))
        };

        same().unwrap_or_default()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::debug!(%error, "Cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn stream(path: &Path) -> Occupant {
        occupant(path, SocketType::STREAM).unwrap()
    }

    #[test]
    fn a_lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");

        let held = Lock::try_acquire(&path).unwrap();

        assert!(held.is_some());
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_socket_without_a_listener_is_told_from_one_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");

        assert_eq!(stream(&path), Occupant::Nobody);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(stream(&path), Occupant::Living);
        drop(listener);
        assert_eq!(stream(&path), Occupant::Stale);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(stream(&path), Occupant::Living);
    }

    #[test]
    fn a_listener_that_ends_leaves_its_successors_socket_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, lock) = (dir.path().join("socket"), dir.path().join("lock"));
        let first = UnixListener::bind(&path).unwrap();
        let of_first = SocketFile::of(&path, &lock).unwrap();
        fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        let of_second = SocketFile::of(&path, &lock).unwrap();

        drop((first, of_first));
        assert_eq!(stream(&path), Occupant::Living);
        drop((second, of_second));
        assert_eq!(stream(&path), Occupant::Nobody);
    }
}

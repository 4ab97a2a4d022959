//! Network namespaces by descriptor: ours have no name, so they end with their last descriptor.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sys;

#[derive(Debug)]
pub(crate) struct NetNamespace {
    fd: OwnedFd,
}

impl NetNamespace {
    /// Makes a namespace that nobody else has.
    pub(crate) fn private() -> io::Result<Self> {
        on_thread(|| {
            sys::unshare_network()?;
            let fd = File::open("/proc/thread-self/ns/net")?.into();
            Ok(Self { fd })
        })
    }

    /// Takes a descriptor from another process; `None` unless it is of a network namespace.
    pub(crate) fn from_descriptor(fd: OwnedFd) -> Option<Self> {
        sys::is_network_namespace(&fd).then_some(Self { fd })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let fd = self.fd.try_clone()?;

        Ok(Self { fd })
    }

    /// Returns whether that process is in this namespace.
    pub(crate) fn is_of_process(&self, pid: u32) -> io::Result<bool> {
        let ours = rustix::fs::fstat(&self.fd)?;
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net"))?;

        Ok(ours.st_ino == theirs.ino() && ours.st_dev == theirs.dev())
    }

    /// Returns whether user ids mean the same in this namespace as in the daemon's own.
    pub(crate) fn has_our_users(&self) -> io::Result<bool> {
        let owner = rustix::fs::fstat(sys::owner_of(&self.fd)?)?;
        let ours = fs::metadata("/proc/self/ns/user")?;

        Ok(owner.st_ino == ours.ino() && owner.st_dev == ours.dev())
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send, E: Send + From<io::Error>>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        on_thread(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)?;
            work()
        })
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `work`, which may change the thread's namespace, on a thread that ends afterwards.
fn on_thread<T: Send, E: Send + From<io::Error>>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(
                |_| Err(io::Error::other("a thread inside a namespace panicked").into()),
            )
    })
}

//! Groups, where the system keeps them (nsswitch.conf(5)).

use anyhow::Context as _;
use nix::{errno::Errno, unistd::Group};

/// The number of the group with this name.
pub(crate) fn find(name: &str) -> anyhow::Result<Option<u32>> {
    match Group::from_name(name) {
        Ok(group) => Ok(group.map(|group| group.gid.as_raw())),
        // Of these, getgrnam(3) says that the group was not found: a source of groups is not there.
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("cannot look up the group {name}")),
    }
}

//! Looks groups up in the sources of nsswitch.conf(5).

use anyhow::Context as _;
use nix::{errno::Errno, unistd::Group};

/// The id of the group with this name.
pub(crate) fn find(name: &str) -> anyhow::Result<Option<u32>> {
    match Group::from_name(name) {
        Ok(group) => Ok(group.map(|group| group.gid.as_raw())),
        // By getgrnam(3) these mean that the group was not found: a source of groups is missing.
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("cannot look up the group {name}")),
    }
}

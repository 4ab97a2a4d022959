//! Turns a requested scope into what the programs check.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, statfs};
use tp_core::sessions::Cgroup;
use tp_ebpf_loader::UserScope;
use tp_root_api::Scope;

use crate::{
    peer::{self, PeerProcess},
    request_error::RequestError,
};

const OWNER_MAY_WRITE: u32 = 0o200;
/// Of statfs(2).
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ResolvedScope {
    pub(crate) user: Option<UserScope>,
    pub(crate) cgroup: Option<Cgroup>,
}

/// The root of the cgroup v2 hierarchy, where hooks see every process.
pub(crate) struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        // A later mount can cover one that is listed.
        let root = cgroup2_mounts(&mounts)
            .find(|root| is_cgroup2(root))
            .context(
                "no cgroup v2 hierarchy is mounted here as a whole; tp needs one, usually at \
                 /sys/fs/cgroup: in a container, start the container with `--cgroupns private` and \
                 keep what is mounted there",
            )?;

        Ok(Self { root })
    }

    pub(crate) fn open(&self) -> Result<File, RequestError> {
        File::open(&self.root)
            .with_context(|| format!("cannot open {}", self.root.display()))
            .map_err(RequestError::from)
    }

    /// Looks at nothing outside of the hierarchy: the peer learns nothing of it, and no file system that
    /// hangs is waited for.
    fn cgroup(&self, path: &str, uid: u32) -> Result<Cgroup, RequestError> {
        let none = || RequestError::invalid(format!("{path} is not a cgroup v2 directory"));
        let below = Path::new(path)
            .strip_prefix(&self.root)
            .map_err(|_| none())?;
        let level = below.components().count();
        if level == 0 {
            return Err(RequestError::invalid(
                "the root cgroup is no scope; ask for the system scope instead",
            ));
        }
        let directory = openat2(
            self.open()?,
            below,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )
        .map_err(|_| none())?;
        let metadata = File::from(directory).metadata()?;
        if uid != 0 && (metadata.uid() != uid || metadata.mode() & OWNER_MAY_WRITE == 0) {
            return Err(RequestError::permission(format!(
                "cgroup {path} does not belong to the user of this session"
            )));
        }

        Ok(Cgroup {
            // The kernel's id of a cgroup is the inode number of its directory.
            id: metadata.ino(),
            level: u32::try_from(level).map_err(|_| RequestError::invalid("cgroup too deep"))?,
        })
    }
}

pub(crate) fn resolve(
    scope: &Scope,
    peer: &PeerProcess,
    hierarchy: &Hierarchy,
) -> Result<ResolvedScope, RequestError> {
    let user = || {
        // It also owns the network namespace, as was checked.
        let user_ns = peer::user_namespace("self")?;
        Ok::<_, RequestError>(UserScope {
            uid: peer.uid,
            capabilities: peer.capabilities_in(user_ns)?,
            user_ns,
        })
    };

    match scope {
        Scope::User => Ok(ResolvedScope {
            user: Some(user()?),
            cgroup: None,
        }),
        Scope::Cgroup { path } => Ok(ResolvedScope {
            user: Some(user()?),
            cgroup: Some(hierarchy.cgroup(path, peer.uid)?),
        }),
        Scope::System if peer.uid == 0 => Ok(ResolvedScope::default()),
        Scope::System => Err(RequestError::permission(
            "only root may steer the sockets of every user; use the user scope",
        )),
    }
}

fn is_cgroup2(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| found.f_type == CGROUP2_SUPER_MAGIC)
}

fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let is_whole = fields.next()? == "/";
        let target = fields.next()?;

        (is_whole && source.starts_with("cgroup2 ")).then(|| Path::new(target).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_mount_is_found_beside_the_old_hierarchies() {
        let mounts = "\
            30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

        let found: Vec<_> = cgroup2_mounts(mounts).collect();

        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_part_of_the_hierarchy_is_not_taken_for_the_whole() {
        let mounts = "31 30 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

        assert_eq!(cgroup2_mounts(mounts).next(), None);
    }
}

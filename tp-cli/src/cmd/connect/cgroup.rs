//! A cgroup of its own for a command of root's, by which a session can keep to that command.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Removed when dropped, unless the command left something running in it.
pub(super) struct CommandCgroup {
    parent: PathBuf,
    own: PathBuf,
}

impl CommandCgroup {
    /// None for other users, whose sessions never need one, and where none can be made.
    pub(super) fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
        let parent = place(&mounts, &cgroup)?;
        let own = parent.join(format!("tp-{}", std::process::id()));
        fs::create_dir(&own).ok()?;

        Some(Self { parent, own })
    }

    pub(super) fn path(&self) -> String {
        self.own.display().to_string()
    }

    /// Moves this process, and with it what it starts from here on.
    pub(super) fn enter(&self) -> io::Result<()> {
        join(&self.own)
    }
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        // Whatever fails here leaves an empty directory behind, which the next boot clears.
        let _ = join(&self.parent);
        let _ = fs::remove_dir(&self.own);
    }
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

/// The directory of this process's cgroup in the unified hierarchy.
fn place(mounts: &str, cgroup: &str) -> Option<PathBuf> {
    let root = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let is_whole = fields.next()? == "/";
        let target = fields.next()?;

        (is_whole && source.starts_with("cgroup2 ")).then_some(target)
    })?;
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;

    Some(Path::new(root).join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_beside_the_old_hierarchies() {
        let mounts = "\
            30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        let own = "3:pids:/x\n0::/user.slice/session.scope\n";

        let found = place(mounts, own);

        let expected = "/sys/fs/cgroup/unified/user.slice/session.scope";
        assert_eq!(found, Some(PathBuf::from(expected)));
        assert_eq!(place("", own), None);
    }
}

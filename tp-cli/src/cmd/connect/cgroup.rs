//! A cgroup for a command of root's, so that its session steers only that command.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

/// Name of such a cgroup, followed by the process id of its `tp`.
const PREFIX: &str = "tp-";

/// Removed when dropped, unless a process still runs in it. The next `tp` removes that of a killed
/// one.
pub(in crate::cmd) struct CommandCgroup {
    parent: PathBuf,
    own: PathBuf,
}

impl CommandCgroup {
    /// `None` without a command, for other users, whose sessions need none, and where it cannot be
    /// made.
    pub(in crate::cmd) fn of(command: &[OsString]) -> Option<Self> {
        if command.is_empty() {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
        let parent = place(&mounts, &cgroup)?;
        sweep(&parent);
        let own = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&own).ok()?;

        Some(Self { parent, own })
    }

    pub(in crate::cmd) fn path(&self) -> String {
        self.own.display().to_string()
    }

    /// Moves this process, and so its later children.
    pub(in crate::cmd) fn enter(&self) -> io::Result<()> {
        join(&self.own)
    }
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        // A failure leaves an empty directory, which the next command removes.
        let _ = join(&self.parent);
        let _ = fs::remove_dir(&self.own);
    }
}

/// Removes cgroups of ended `tp`s. The kernel keeps those with processes.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid: Option<u32> = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
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
    fn what_a_killed_tp_has_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let own = format!("tp-{}", std::process::id());
        // No process has this largest id.
        for name in [own.as_str(), "tp-4294967295", "tp-web", "other"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }

        sweep(parent.path());

        for name in [own.as_str(), "tp-web", "other"] {
            assert!(parent.path().join(name).exists(), "{name}");
        }
        assert!(!parent.path().join("tp-4294967295").exists());
    }

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

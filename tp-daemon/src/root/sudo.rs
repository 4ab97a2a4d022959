//! Whether a root daemon that was started with sudo may run: its binary must be root's, or the
//! user could have root run anything by replacing it.

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Checks the running executable; returns the user who called sudo.
pub(super) fn check() -> anyhow::Result<u32> {
    let uid = env::var("SUDO_UID")
        .ok()
        .and_then(|uid| uid.parse().ok())
        .context("SUDO_UID is not set: run `sudo tp-daemon root --sudo`")?;
    let executable = env::current_exe().context("cannot find out which program this is")?;
    check_executable(&executable)?;

    Ok(uid)
}

fn check_executable(executable: &Path) -> anyhow::Result<()> {
    let directory = executable.parent().map(PathBuf::from).unwrap_or_default();
    for path in [executable, &directory] {
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
        if metadata.uid() != 0 || metadata.mode() & WRITABLE_BY_OTHERS != 0 {
            bail!(
                "{} must belong to root and be writable by nobody else; install tp-daemon with \
                 `sudo tp-daemon install`",
                path.display()
            );
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_others_may_replace_does_not_run() {
        assert!(check_executable(Path::new("/bin/sh")).is_ok());
        let error = check_executable(Path::new("/tmp/anything")).unwrap_err();
        assert!(format!("{error:#}").contains("/tmp"));
    }
}

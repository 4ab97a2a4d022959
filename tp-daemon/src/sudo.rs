//! Whether a root daemon that was started with sudo may run: its binary must be root's, or the
//! user could run anything as root by replacing it.

use std::{env, path::Path};

use anyhow::{Context, bail};
use tp_process::owner;

/// Checks the running executable; returns the user who called sudo.
pub(crate) fn check() -> anyhow::Result<u32> {
    let uid = env::var("SUDO_UID")
        .ok()
        .and_then(|uid| uid.parse().ok())
        .context("SUDO_UID is not set: run `sudo tp-daemon root --sudo`")?;
    // With uid 0 only root is served, who may run any program as root anyway.
    if uid != 0 {
        let executable = env::current_exe().context("cannot find out which program this is")?;
        check_executable(&executable)?;
    }

    Ok(uid)
}

fn check_executable(executable: &Path) -> anyhow::Result<()> {
    let part = owner::replaceable_part(executable)
        .with_context(|| format!("cannot examine {}", executable.display()))?;
    if let Some(part) = part {
        bail!(
            "{} must belong to root and be writable by nobody else; install tp-daemon with `sudo \
             tp-daemon install`",
            part.display()
        );
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_binary_that_others_may_replace_does_not_run() {
        assert!(check_executable(Path::new("/bin/sh")).is_ok());
        let error = check_executable(Path::new("/tmp/anything")).unwrap_err();
        assert!(format!("{error:#}").contains("/tmp"));

        // Its own directory is closed, the one above is not.
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("release/tp-daemon");
        fs::create_dir(dir.path().join("release")).unwrap();
        fs::write(&program, "").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = check_executable(&program).unwrap_err();
        assert!(error.to_string().contains("must belong to root"), "{error}");
    }
}

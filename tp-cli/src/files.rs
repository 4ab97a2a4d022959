//! Where the programs are.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tp_proto::fault::{Fault, FaultKind};

const DAEMON: &str = "tp-daemon";
const INSTALLED: &str = "/usr/local/bin/tp-daemon";

/// The daemon that belongs to this `tp`: beside it, else the installed one, else on PATH.
pub(crate) fn daemon() -> Result<PathBuf, Fault> {
    let own = std::env::current_exe()
        .ok()
        .and_then(|path| path.canonicalize().ok());
    let beside = own
        .as_deref()
        .and_then(Path::parent)
        .map(|dir| dir.join(DAEMON));
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .map(|dir| dir.join(DAEMON));

    beside
        .into_iter()
        .chain([PathBuf::from(INSTALLED)])
        .chain(on_path)
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let message = "the program tp-daemon is neither beside tp nor on PATH: \
                           put both programs of the release in one directory";
            Fault::new(FaultKind::Failed, message)
        })
}

/// The daemon that sudo may start: a file that nobody but root can replace.
pub(crate) fn daemon_for_root() -> Result<PathBuf, Fault> {
    let own = daemon()?;
    [own.clone(), PathBuf::from(INSTALLED)]
        .into_iter()
        .find(|path| only_root_can_replace(path))
        .ok_or_else(|| {
            let own = own.display();
            let message = format!(
                "the root daemon is not running, and {own} is not started as root because users \
                 other than root can replace it: run `sudo {own} install` once"
            );
            Fault::new(FaultKind::Unavailable, message)
        })
}

fn only_root_can_replace(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };

    path.ancestors().all(|part| {
        fs::symlink_metadata(part).is_ok_and(|metadata| {
            // In a sticky directory, /tmp, only the owner can replace a file.
            let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
            metadata.uid() == 0 && (sticky || metadata.mode() & 0o022 == 0)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_may_write_is_not_for_root() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(DAEMON);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)).unwrap();

        assert!(!only_root_can_replace(&file));
        assert!(!only_root_can_replace(&dir.path().join("absent")));
        assert!(only_root_can_replace(Path::new("/usr/bin/env")));
    }
}

//! Where the programs are.

use std::path::{Path, PathBuf};

use tp_proto::fault::{Fault, FaultKind};
use tp_transport::ipc::owner;

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
        .find(|path| matches!(owner::replaceable_part(path), Ok(None)))
        .ok_or_else(|| {
            let own = own.display();
            let message = format!(
                "the root daemon is not running, and {own} is not started as root because users \
                 other than root can replace it: run `sudo {own} install` once"
            );
            Fault::new(FaultKind::Unavailable, message)
        })
}

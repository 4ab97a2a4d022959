//! Paths of the programs.

use std::path::{Path, PathBuf};

use tp_process::owner;
use tp_proto::fault::{Fault, FaultKind};

const DAEMON: &str = "tp-daemon";
const SESSION: &str = "tp-session";
const INSTALLED_IN: &str = "/usr/local/bin";

/// The root daemon's program.
pub(crate) fn daemon() -> Result<PathBuf, Fault> {
    belonging(DAEMON)
}

/// The session's program.
pub(crate) fn session() -> Result<PathBuf, Fault> {
    belonging(SESSION)
}

/// Finds a program of this `tp`: beside it, else the installed one, else on PATH.
fn belonging(name: &str) -> Result<PathBuf, Fault> {
    let own = std::env::current_exe()
        .ok()
        .and_then(|path| path.canonicalize().ok());
    let beside = own
        .as_deref()
        .and_then(Path::parent)
        .map(|dir| dir.join(name));
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .map(|dir| dir.join(name));

    beside
        .into_iter()
        .chain([installed(name)])
        .chain(on_path)
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let message = format!(
                "the program {name} is neither beside tp nor on PATH: put all programs of the \
                 release in one directory"
            );
            Fault::new(FaultKind::Failed, message)
        })
}

fn installed(name: &str) -> PathBuf {
    Path::new(INSTALLED_IN).join(name)
}

/// The daemon for sudo: a file that only root can replace.
pub(crate) fn daemon_for_root() -> Result<PathBuf, Fault> {
    let own = daemon()?;
    [own.clone(), installed(DAEMON)]
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

//! Detaches a background program from its parent.

use std::io::{self, IsTerminal as _};

use rustix::{
    fs::Mode,
    process::{chdir, setsid, umask},
};

use crate::sys;

/// Resets inherited descriptors, ignored signals and the file mode mask; unless stdin is a terminal,
/// also leaves the session and the working directory. Call it before anything else is opened or
/// started. `mask` is the new file mode creation mask (umask(2)).
pub fn enter(mask: u32) {
    sys::close_inherited();
    sys::reset_signals();
    umask(Mode::from_raw_mode(mask));
    if io::stdin().is_terminal() {
        return;
    }
    // It fails for a process group leader, which has a session of its own already, as under systemd.
    let _ = setsid();
    // The old working directory may be unmounted later.
    let _ = chdir("/");
}

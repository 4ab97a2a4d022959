//! What a program in the background keeps of whoever started it: nothing.

use std::io::{self, IsTerminal as _};

use rustix::{
    fs::Mode,
    process::{chdir, setsid, umask},
};

use crate::sys;

/// Lets go of descriptors, ignored signals and the file mask, and unless somebody watches on a
/// terminal, of the terminal's session and the working directory. To be called before anything
/// else is opened or started. `mask` is the new file mode creation mask (umask(2)).
pub fn enter(mask: u32) {
    sys::close_inherited();
    sys::heed_signals();
    umask(Mode::from_raw_mode(mask));
    if io::stdin().is_terminal() {
        return;
    }
    // A process that leads its group is in a session of its own already, as under systemd.
    let _ = setsid();
    // Where it stood may be unmounted later; without "/" there is no better place.
    let _ = chdir("/");
}

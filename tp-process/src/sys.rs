//! System calls without a safe wrapper.

use std::{mem, ptr};

const LAST_SIGNAL: libc::c_int = 64;

/// Closes every descriptor but the standard three: an inherited lock or pipe would be held for as long
/// as this program runs.
pub(crate) fn close_inherited() {
    let (first, last, flags): (libc::c_uint, libc::c_uint, libc::c_uint) =
        (3, libc::c_uint::MAX, 0);
    // SAFETY: called before this program has opened anything, so that nobody owns what is closed.
    // It fails where a seccomp profile is older than the call (Linux 5.9); nothing is lost then.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Resets ignored signals to their default action, except SIGPIPE, which Rust ignores, and unblocks all.
/// A script's shell ignores SIGINT for its background jobs.
pub(crate) fn reset_signals() {
    for signal in (1..=LAST_SIGNAL).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: all zeroes is a valid `sigaction`, the default action without flags; the kernel
        // reads and writes only the two that are given. Signals that have no action are refused.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            let is_known = libc::sigaction(signal, ptr::null(), &raw mut action) == 0;
            if is_known && action.sa_sigaction == libc::SIG_IGN {
                let default: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
    }
    // SAFETY: the set is initialised before it is used, and no other thread runs yet.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

//! System calls without a safe wrapper.

use std::{io, mem, os::fd::AsFd, ptr, sync::atomic::AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

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

/// Words of memory that are shared with others, such as the kernel.
pub struct SharedWords {
    memory: ptr::NonNull<AtomicU64>,
    words: usize,
}

impl SharedWords {
    /// Maps the first `words` words of what `fd` refers to, which must not get shorter, as a map of
    /// eBPF cannot.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn map(fd: impl AsFd, words: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let length = words * size_of::<u64>();
        // SAFETY: a new mapping at an address of the kernel's choice, which replaces none.
        let memory = unsafe { mmap(ptr::null_mut(), length, protection, flags, fd, 0) }?;
        let memory = ptr::NonNull::new(memory.cast())
            .ok_or_else(|| io::Error::other("memory was mapped at no address"))?;

        Ok(Self { memory, words })
    }

    /// The words, for as long as they are mapped.
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: mapped with this length, readable and writable, at the start of a page, for as long
        // as `self` lives; others write it only while these are atomic.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }
}

// SAFETY: the mapping belongs to no thread, and is used by atomic operations alone.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let length = self.words * size_of::<u64>();
        // SAFETY: mapped with this length; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), length) };
        debug_assert!(unmapped.is_ok(), "it was mapped");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn what_is_stored_is_seen_through_the_descriptor() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(32).unwrap();

        let words = SharedWords::map(File::as_fd(&file), 4).unwrap();
        words.as_slice()[2].store(u64::from_ne_bytes(*b"01234567"), Ordering::Relaxed);
        drop(words);

        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(&bytes[16..24], b"01234567");
    }
}

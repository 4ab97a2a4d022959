//! Freezes maps, and maps them into memory.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr,
    sync::atomic::AtomicU32,
};

const BPF_MAP_FREEZE: libc::c_long = 22;

/// Forbids user space, this process included, to change a map; eBPF programs still may.
pub(crate) fn freeze(map: impl AsFd) -> io::Result<()> {
    // The command reads no other field of `union bpf_attr`.
    let attributes: RawFd = map.as_fd().as_raw_fd();
    // SAFETY: the attributes live through the call and have the size that is passed.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_FREEZE,
            &raw const attributes,
            size_of::<RawFd>(),
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// The words of an array map, mapped into memory. Without [`Access::ReadWrite`] they must only be
/// loaded.
pub(crate) struct Words {
    start: *const AtomicU32,
    len: usize,
}

// SAFETY: the memory is shared with the kernel and only accessed through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub(crate) fn map(map: impl AsFd, len: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let fd = map.as_fd().as_raw_fd();
        let bytes = len * size_of::<AtomicU32>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }

        Ok(Self {
            start: start.cast_const().cast(),
            len,
        })
    }

    pub(crate) fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.len, "the caller knows the length");

        // SAFETY: the mapping is page-aligned, holds `len` words and lives as long as `self`.
        unsafe { &*self.start.add(index) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU32>();
        // SAFETY: a mapping made above, to which no reference outlives `self`.
        let status = unsafe { libc::munmap(self.start.cast_mut().cast(), bytes) };
        debug_assert_eq!(status, 0);
    }
}

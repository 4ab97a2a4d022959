//! Freezes maps, and maps them into memory.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr,
    sync::atomic::AtomicU32,
};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_FREEZE: libc::c_long = 22;

/// What the commands read of `union bpf_attr`.
#[repr(C)]
struct Attributes {
    map: RawFd,
    _zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts `map` into an array of maps.
pub(crate) fn set(array: impl AsFd, index: u32, map: impl AsFd) -> io::Result<()> {
    let map: RawFd = map.as_fd().as_raw_fd();

    bpf(BPF_MAP_UPDATE_ELEM, array, Some(&index), Some(&map))
}

/// Takes the map at `index` out of an array of maps.
pub(crate) fn remove(array: impl AsFd, index: u32) -> io::Result<()> {
    bpf(BPF_MAP_DELETE_ELEM, array, Some(&index), None)
}

/// Forbids user space, this process included, to change a map; eBPF programs still may.
pub(crate) fn freeze(map: impl AsFd) -> io::Result<()> {
    bpf(BPF_MAP_FREEZE, map, None, None)
}

fn bpf(
    command: libc::c_long,
    map: impl AsFd,
    key: Option<&u32>,
    value: Option<&RawFd>,
) -> io::Result<()> {
    let attributes = Attributes {
        map: map.as_fd().as_raw_fd(),
        _zero: 0,
        key: key.map_or(0, |key| ptr::from_ref(key).expose_provenance() as u64),
        value: value.map_or(0, |value| ptr::from_ref(value).expose_provenance() as u64),
        flags: 0,
    };
    // Fields that a command does not know must not be passed to it.
    let len = match command {
        BPF_MAP_FREEZE => size_of::<RawFd>(),
        BPF_MAP_DELETE_ELEM => mem::offset_of!(Attributes, value),
        _ => size_of::<Attributes>(),
    };
    // SAFETY: the attributes, the key and the value live through the call, and the key and the value
    // have the size that the map has been made with.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, len) };
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

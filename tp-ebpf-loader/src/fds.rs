//! Descriptors of maps for other processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

const BPF_MAP_FREEZE: libc::c_long = 22;

/// Forbids user space, ours included, to change a map; programs still may.
pub(crate) fn freeze(map: impl AsFd) -> io::Result<()> {
    // What the command reads of `union bpf_attr`.
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

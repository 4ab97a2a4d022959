//! Descriptors of maps for other processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_F_RDONLY: u32 = 1 << 3;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// The head of `union bpf_attr` for BPF_MAP_GET_FD_BY_ID.
#[repr(C)]
struct GetFdById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens the map with this id once more; the descriptor closes on exec.
pub(crate) fn open_map(id: u32, access: Access) -> io::Result<OwnedFd> {
    let attributes = GetFdById {
        id,
        next_id: 0,
        open_flags: if access == Access::Read {
            BPF_F_RDONLY
        } else {
            0
        },
    };
    // SAFETY: the attributes live through the call and have the size that is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_GET_FD_BY_ID,
            &raw const attributes,
            size_of::<GetFdById>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }

    let fd = i32::try_from(fd).expect("a descriptor is an int");
    // SAFETY: the kernel has just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    debug_assert!(fd.as_fd().as_raw_fd() > 2);
    Ok(fd)
}

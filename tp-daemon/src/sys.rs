//! System calls without a safe wrapper. The only unsafe code of the root role.

use std::{
    ffi::c_void,
    io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// `_IO(0xb7, 3)`: the kind of a namespace descriptor.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// `_IO(0xb7, 1)`: the user namespace behind a namespace descriptor.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
/// `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// `_IOW('T', 218, unsigned int)`.
const TUNSETIFINDEX: libc::Ioctl = 0x4004_54da;
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_PEERPIDFD: libc::c_int = 77;
const SO_PEERGROUPS: libc::c_int = 59;
const MAX_GROUPS: usize = 65536;

/// Moves the calling thread into a network namespace of its own.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace changes, no memory or descriptor table is unshared.
    let status = unsafe { libc::unshare(libc::CLONE_NEWNET) };

    check(status)
}

/// Returns whether the descriptor is a network namespace.
pub(crate) fn is_network_namespace(fd: impl AsFd) -> bool {
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) };

    kind == libc::CLONE_NEWNET
}

/// Opens the user namespace that owns a namespace.
pub(crate) fn owner_of(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    check(fd)?;

    // SAFETY: the kernel has just made it for us, with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a TUN device with this index in the calling thread's network namespace and attaches it to
/// `file`.
pub(crate) fn make_tun(file: impl AsFd, name: &str, index: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one integer, which lives through the call.
    let status = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETIFINDEX, &raw const index) };
    check(status)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("both fit");
    // SAFETY: `request` is a live `ifreq`; the kernel keeps no pointer to it.
    let status = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETIFF, &raw mut request) };

    check(status)
}

/// Asks for the original destination of every datagram.
pub(crate) fn receive_original_destination(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value lives through the call and has the size that is passed.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_IP,
            libc::IP_RECVORIGDSTADDR,
            (&raw const on).cast::<c_void>(),
            socklen::<libc::c_int>(1),
        )
    };

    check(status)
}

/// The cookie of the network namespace that a socket belongs to.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = [0_u64];
    read_option(socket, SO_NETNS_COOKIE, &mut cookie)?;

    Ok(cookie[0])
}

/// Pid, uid and gid of the peer at the time it connected. The pid is 0 if our PID namespace does not
/// contain the process.
pub(crate) fn peer_credentials(socket: impl AsFd) -> io::Result<(u32, u32, u32)> {
    let mut ids = [0_u32; 3];
    read_option(socket, libc::SO_PEERCRED, &mut ids)?;

    Ok((ids[0], ids[1], ids[2]))
}

/// A pidfd of the peer. From Linux 6.5 on.
pub(crate) fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd = [0_i32];
    read_option(socket, SO_PEERPIDFD, &mut fd)?;

    // SAFETY: the kernel has just made it for us, with close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd[0]) })
}

/// Supplementary groups of the peer at the time it connected.
pub(crate) fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        match read_option(&socket, SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < MAX_GROUPS =>
            {
                groups.resize(groups.len() * 4, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Fills `values` from an option of SOL_SOCKET; returns how many elements the kernel wrote.
fn read_option<T: Integer>(
    socket: impl AsFd,
    option: libc::c_int,
    values: &mut [T],
) -> io::Result<usize> {
    let mut len = socklen::<T>(values.len());
    // SAFETY: `values` is writable memory of `len` bytes, and any bytes are a valid integer.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            values.as_mut_ptr().cast::<c_void>(),
            &raw mut len,
        )
    };
    check(status)?;

    Ok(len as usize / size_of::<T>())
}

/// Types of which every bit pattern is a value.
trait Integer {}
impl Integer for i32 {}
impl Integer for u32 {}
impl Integer for u64 {}

fn socklen<T>(count: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(count * size_of::<T>()).expect("small")
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

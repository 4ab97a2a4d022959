//! System calls without a safe wrapper.

use std::{
    io, mem,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap},
    time::{ClockId, clock_gettime},
};

/// The heartbeat; mapped until the process ends.
pub(crate) struct Heartbeat(&'static AtomicU64);

impl Heartbeat {
    pub(crate) fn map(fd: &OwnedFd) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), 8, protection, MapFlags::SHARED, fd, 0) };
        let start = start.expect("the heartbeat can be mapped");
        // SAFETY: an aligned word that stays mapped.
        Self(unsafe { &*start.cast() })
    }

    pub(crate) fn set(&self, nanoseconds: u64) {
        self.0.store(nanoseconds, Ordering::Release);
    }
}

/// Returns whether the alias table may be mapped for writing.
pub(crate) fn is_writable(fd: &OwnedFd) -> bool {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, which is never used.
    unsafe { mmap(ptr::null_mut(), 4096, protection, MapFlags::SHARED, fd, 0) }.is_ok()
}

pub(crate) struct Datagram {
    pub(crate) source: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
}

/// Receives a datagram together with its original destination.
pub(crate) fn receive_datagram(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Datagram> {
    // SAFETY: all zeroes is a valid value of both.
    let (mut source, mut message): (libc::sockaddr_in, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = [0_u64; 32];
    let mut slice = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut source).cast();
    message.msg_namelen = u32::try_from(size_of::<libc::sockaddr_in>()).expect("small");
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the message leads to live memory of the size beside it.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if received < 0 {
        return None;
    }

    // SAFETY: the kernel has filled the message; its control data is walked as documented, and
    // IP_ORIGDSTADDR carries a `sockaddr_in`.
    let destination = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_IP
            || (*header).cmsg_type != libc::IP_ORIGDSTADDR
        {
            return None;
        }
        ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::sockaddr_in>())
    };
    let end = |a: libc::sockaddr_in| (a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port));

    Some(Datagram {
        source: end(source),
        destination: end(destination),
    })
}

/// The clock of the heartbeat.
pub(crate) fn boot_time_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("time is positive");
    let rest = u64::try_from(now.tv_nsec).expect("time is positive");

    seconds * 1_000_000_000 + rest
}

/// IP_PKTINFO of a datagram to be sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Departure {
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) interface: u32,
}

/// Sends a datagram with IP_PKTINFO.
pub(crate) fn send_with(
    socket: &impl AsRawFd,
    departure: Departure,
    to: SocketAddrV4,
    payload: &[u8],
) -> io::Result<()> {
    let source = departure.source.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let info = libc::in_pktinfo {
        ipi_ifindex: i32::try_from(departure.interface).expect("small"),
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(source.octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let mut to = socket_address(libc::AF_INET, to);
    let mut slice = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let mut control = [0_u64; 8];
    // SAFETY: all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = u32::try_from(size_of::<libc::sockaddr_in>()).expect("small");
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    let len = u32::try_from(size_of::<libc::in_pktinfo>()).expect("small");
    // SAFETY: the control buffer is aligned and has room for one header and its data; every
    // pointer of the message leads to live memory of the size beside it.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(len) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), info);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

/// Sends to an IPv4 address with the family AF_UNSPEC.
pub(crate) fn send_to_unspec(
    socket: &impl AsRawFd,
    to: SocketAddrV4,
    payload: &[u8],
) -> io::Result<()> {
    let to = socket_address(libc::AF_UNSPEC, to);
    let len = u32::try_from(size_of_val(&to)).expect("small");
    // SAFETY: both pointers lead to live memory of the size beside them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            0,
            (&raw const to).cast(),
            len,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

fn socket_address(family: i32, address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: u16::try_from(family).expect("small"),
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

/// Sets how often the kernel repeats a SYN.
pub(crate) fn set_syn_retries(socket: &impl AsRawFd, count: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, count)
}

/// Sets an option of IP that is a number.
pub(crate) fn set_ip_option(socket: &impl AsRawFd, option: i32, value: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, option, value)
}

fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: u32) -> io::Result<()> {
    let len = u32::try_from(size_of::<u32>()).expect("small");
    // SAFETY: the value lives through the call and has the size that is passed.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

/// Binds a socket to an interface, as every user may.
pub(crate) fn bind_to_device(socket: &impl AsRawFd, name: &str) -> io::Result<()> {
    let len = u32::try_from(name.len()).expect("short");
    // SAFETY: the name lives through the call and has the length that is passed.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            len,
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }

    Ok(())
}

/// Makes the kernel count the runs of eBPF programs and their time while the descriptor is open.
pub(crate) fn time_programs() -> io::Result<OwnedFd> {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    // BPF_STATS_RUN_TIME, the only type.
    let run_time: u32 = 0;
    // SAFETY: of its attributes this command reads one word, which lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_ENABLE_STATS,
            &raw const run_time,
            size_of::<u32>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor");

    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the effective ids the real ones again; the saved ones stay.
pub(crate) fn lay_down_ids() {
    const KEEP: u32 = u32::MAX;
    // SAFETY: no preconditions; no other thread runs yet.
    let statuses = unsafe {
        [
            libc::setresgid(KEEP, libc::getgid(), KEEP),
            libc::setresuid(KEEP, libc::getuid(), KEEP),
        ]
    };
    assert_eq!(statuses, [0, 0], "own ids can be taken");
}

pub(crate) fn become_user(uid: u32) {
    // SAFETY: no preconditions; no other thread runs yet.
    let statuses = unsafe {
        [
            libc::setgroups(0, ptr::null()),
            libc::setresgid(uid, uid, uid),
            libc::setresuid(uid, uid, uid),
        ]
    };
    assert_eq!(statuses, [0, 0, 0], "root may");
}

/// Enters a new user namespace, owned by the user of this process.
pub(crate) fn unshare_users() {
    // SAFETY: no preconditions; no other thread runs yet.
    let status = unsafe { libc::unshare(libc::CLONE_NEWUSER) };
    assert_eq!(status, 0, "user namespaces are there");
}

//! The maps of the bundle, mapped into memory, and datagrams with their destination.

use std::{
    mem,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Aliases to real addresses; mapped until the process ends.
pub(crate) struct AliasTable(&'static [AtomicU32]);

impl AliasTable {
    pub(crate) fn map(fd: &OwnedFd, count: usize) -> Self {
        let bytes = count * size_of::<u32>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )
        };
        let start = start.expect("the alias table can be mapped");
        // SAFETY: `count` aligned words that stay mapped.
        Self(unsafe { std::slice::from_raw_parts(start.cast(), count) })
    }

    pub(crate) fn real(&self, index: usize) -> [u8; 4] {
        self.0[index].load(Ordering::Acquire).to_ne_bytes()
    }
}

/// The sign of life; mapped until the process ends.
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

/// Says whether the alias table may be mapped for writing.
pub(crate) fn is_writable(fd: &OwnedFd) -> bool {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, which is never used.
    unsafe { mmap(ptr::null_mut(), 4096, protection, MapFlags::SHARED, fd, 0) }.is_ok()
}

pub(crate) struct Datagram {
    pub(crate) len: usize,
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
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).ok()?;

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
        len,
        source: end(source),
        destination: end(destination),
    })
}

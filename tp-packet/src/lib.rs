//! Packets between a program with power and one without: one JSON object each, with file descriptors
//! (SCM_RIGHTS, unix(7)), on a unix SOCK_SEQPACKET socket. Both ends use this.
//!
//! Knows no request; `tp-root-api` and `tp-agent-api` do.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, recvmsg, sendmsg, socket_with,
    },
};
use serde::Serialize;

/// Largest packet either side accepts, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Descriptors that fit into one packet: more than any carries, so that a surplus is noticed.
const MAX_FDS: usize = 8;

/// One packet as received.
#[derive(Debug)]
pub struct RawPacket<'a> {
    /// The JSON object; empty when the other end has closed the connection.
    pub bytes: &'a [u8],
    /// The descriptors that came with it, in the order of the sender, closed on exec.
    pub fds: Vec<OwnedFd>,
    /// The packet was larger than the buffer, or carried more descriptors than fit.
    pub is_truncated: bool,
}

/// Makes a SOCK_SEQPACKET socket with these flags, closed on exec.
///
/// # Errors
///
/// Those of socket(2).
pub fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;

    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Connects `socket` to the program that listens at `path`.
///
/// # Errors
///
/// Those of connect(2) but EINTR. EAGAIN: the other's backlog is full.
pub fn connect(socket: impl AsFd, path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;

    Ok(retry_on_intr(|| rustix::net::connect(&socket, &address))?)
}

/// Sends one packet.
///
/// # Errors
///
/// Those of sendmsg(2) but EINTR, and `InvalidInput` for a packet that no peer accepts: more than
/// [`MAX_PACKET`] bytes, or eight or more descriptors.
pub fn send(socket: impl AsFd, packet: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet)?;
    if bytes.len() > MAX_PACKET || fds.len() >= MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let slices = [IoSlice::new(&bytes)];
    let sent = retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let has_room = control.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(has_room, "checked above");
        }
        sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL)
    })?;
    debug_assert_eq!(sent, bytes.len(), "packets are sent whole");

    Ok(())
}

/// Waits for one packet, subject to the socket's flags and time-outs. A buffer of [`MAX_PACKET`] bytes
/// holds every packet of [`send`].
///
/// # Errors
///
/// Those of recvmsg(2) but EINTR.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<RawPacket<'_>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(buffer)];
        recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();

    Ok(RawPacket {
        bytes: &buffer[..message.bytes],
        fds,
        is_truncated: message
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;

        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_packet_comes_as_it_was_sent_and_then_the_end() {
        let (one, other) = pair();
        let mut buffer = vec![0; MAX_PACKET];

        send(&one, &"first", &[]).unwrap();
        let fds = [descriptor(), descriptor()];
        send(&one, &"second", &fds.each_ref().map(AsFd::as_fd)).unwrap();
        drop(one);

        let first = receive(&other, &mut buffer).unwrap();
        assert_eq!((first.bytes, first.fds.len()), (&b"\"first\""[..], 0));
        let second = receive(&other, &mut buffer).unwrap();
        assert!(!second.is_truncated);
        assert_eq!((second.bytes, second.fds.len()), (&b"\"second\""[..], 2));
        assert!(receive(&other, &mut buffer).unwrap().bytes.is_empty());
    }

    #[test]
    fn what_has_no_room_is_not_sent_and_not_taken_for_whole() {
        let (one, other) = pair();
        let fds = [descriptor(), descriptor(), descriptor(), descriptor()];
        let fds: Vec<_> = fds.iter().chain(&fds).map(AsFd::as_fd).collect();

        let long = "x".repeat(MAX_PACKET);
        assert!(send(&one, &long, &[]).is_err());
        assert!(send(&one, &"", &fds).is_err());
        send(&one, &"twenty bytes or more", &[]).unwrap();

        assert!(receive(&other, &mut [0; 8]).unwrap().is_truncated);
    }
}

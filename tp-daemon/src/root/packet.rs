//! Requests and replies on a connection: one packet each, descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::fstatfs,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::set_socket_linger,
    },
};
use tp_proto::root::{MAX_PACKET, Reply, Request};

use super::refusal::Refusal;

/// A request carries at most one descriptor; room for more shows that there were more.
const MAX_RECEIVED_FDS: usize = 4;
const MAX_SENT_FDS: usize = 5;

/// What came: nothing any more, a request, something that is none, or what no request carries.
pub(super) enum Received {
    Closed,
    Request(Request, Vec<OwnedFd>),
    Malformed(Refusal),
    /// To be closed last: its owner decides how long that takes.
    Foreign(Vec<OwnedFd>),
}

/// Waits for one packet.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_RECEIVED_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            result => break result?,
        }
    };
    // Taken out first, so that they are closed whatever the packet says.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if !fds.iter().all(is_namespace) {
        for fd in &fds {
            // Fails for what is no socket. One that lingers would hold up whoever closes it.
            let _ = set_socket_linger(fd, Some(Duration::ZERO));
        }
        return Ok(Received::Foreign(fds));
    }
    if message.bytes == 0 {
        return Ok(Received::Closed);
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Ok(Received::Malformed(Refusal::invalid(
            "the request is larger than a packet may be",
        )));
    }

    match serde_json::from_slice(&buffer[..message.bytes]) {
        Ok(request) => Ok(Received::Request(request, fds)),
        Err(error) => Ok(Received::Malformed(Refusal::invalid(format!(
            "the request cannot be read; are session and root daemon of the same version? {error}"
        )))),
    }
}

/// A file of nsfs, whose end nobody can delay.
fn is_namespace(fd: &OwnedFd) -> bool {
    fstatfs(fd).is_ok_and(|found| found.f_type == libc::NSFS_MAGIC)
}

pub(super) fn send(socket: impl AsFd, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(reply)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_SENT_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let has_room = control.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(has_room, "checked above");
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    debug_assert_eq!(sent, bytes.len(), "packets are sent whole");

    Ok(())
}

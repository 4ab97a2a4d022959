//! Requests and replies on a connection: one packet each, descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use tp_proto::root::{MAX_PACKET, Reply, Request};

use super::refusal::Refusal;

/// A request carries at most one descriptor; room for more shows that there were more.
const MAX_RECEIVED_FDS: usize = 4;
const MAX_SENT_FDS: usize = 5;

/// What came: nothing any more, a request, or something that is none.
pub(super) enum Received {
    Closed,
    Request(Request, Vec<OwnedFd>),
    Malformed(Refusal),
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

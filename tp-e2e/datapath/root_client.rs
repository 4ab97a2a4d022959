//! A client of the root daemon.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};
use serde_json::Value;

pub(crate) struct RootClient {
    socket: OwnedFd,
}

impl RootClient {
    pub(crate) fn connect(path: &str) -> std::io::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;

        Ok(Self { socket })
    }

    /// Sends a request unchanged; an "open" with the given network namespace.
    pub(crate) fn ask(&self, request: &Value, netns: Option<&str>) -> (Value, Vec<OwnedFd>) {
        let file = netns.map(|path| File::open(path).expect("the namespace can be opened"));
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();

        self.ask_with(request, &fds)
    }

    /// Sends a request with at most one descriptor.
    pub(crate) fn ask_with(
        &self,
        request: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> (Value, Vec<OwnedFd>) {
        let bytes = request.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let slices = [IoSlice::new(bytes.as_bytes())];
        sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL)
            .expect("the root daemon listens");

        self.receive().expect("the root daemon replies")
    }

    /// Waits until the root daemon closes the connection.
    pub(crate) fn wait_for_end(&self) {
        while self.receive().is_some() {}
    }

    fn receive(&self) -> Option<(Value, Vec<OwnedFd>)> {
        let mut buffer = vec![0; 65536];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .ok()?;
        if message.bytes == 0 {
            return None;
        }
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let reply = serde_json::from_slice(&buffer[..message.bytes]).expect("replies are JSON");

        Some((reply, fds))
    }
}

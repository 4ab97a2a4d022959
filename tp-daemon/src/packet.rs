//! Requests as they come: what no session sends is told from what one does.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{fs::fstatfs, net::sockopt::set_socket_linger};
use tp_root_api::{Request, wire};

use crate::refusal::Refusal;

/// What came: nothing any more, a request, something that is none, or what no request carries.
pub(crate) enum Received {
    Closed,
    Request(Request, Vec<OwnedFd>),
    Malformed(Refusal),
    /// To be closed last: its owner decides how long that takes.
    Foreign(Vec<OwnedFd>),
}

/// Waits for one packet.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let packet = match wire::receive(socket, buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Ok(Received::Closed);
        }
        result => result?,
    };
    if !packet.fds.iter().all(is_namespace) {
        for fd in &packet.fds {
            // Fails for what is no socket. One that lingers would hold up whoever closes it.
            let _ = set_socket_linger(fd, Some(Duration::ZERO));
        }
        return Ok(Received::Foreign(packet.fds));
    }
    if packet.bytes.is_empty() {
        return Ok(Received::Closed);
    }
    if packet.is_truncated {
        return Ok(Received::Malformed(Refusal::invalid(
            "the request is larger than a packet may be",
        )));
    }

    match serde_json::from_slice(packet.bytes) {
        Ok(request) => Ok(Received::Request(request, packet.fds)),
        Err(error) => Ok(Received::Malformed(Refusal::invalid(format!(
            "the request cannot be read; are session and root daemon of the same version? {error}"
        )))),
    }
}

/// A file of nsfs, whose end nobody can delay.
fn is_namespace(fd: &OwnedFd) -> bool {
    fstatfs(fd).is_ok_and(|found| found.f_type == libc::NSFS_MAGIC)
}

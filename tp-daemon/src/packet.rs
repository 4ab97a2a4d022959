//! Receives requests, and separates them from packets that no session sends.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::fstatfs,
    net::{
        AddressFamily, SocketType, ipproto,
        sockopt::{set_socket_linger, socket_domain, socket_protocol, socket_type},
    },
};
use tp_root_api::{Request, wire};

use crate::request_error::RequestError;

/// The end of the connection, a request, an unreadable one, or descriptors that no request carries.
pub(crate) enum Incoming {
    Closed,
    Request(Request, Vec<OwnedFd>),
    Malformed(RequestError),
    /// To be closed last: whoever serves such a file can delay its close.
    Foreign(Vec<OwnedFd>),
}

/// Waits for one packet.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Incoming> {
    let packet = match wire::receive(socket, buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Ok(Incoming::Closed);
        }
        result => result?,
    };
    let request = serde_json::from_slice(packet.bytes);
    let is_of_request = match &request {
        Ok(Request::ShowClient { .. }) => is_tcp_socket,
        _ => is_namespace,
    };
    if !packet.fds.iter().all(is_of_request) {
        for fd in &packet.fds {
            // Fails unless it is a socket. SO_LINGER would delay its close.
            let _ = set_socket_linger(fd, Some(Duration::ZERO));
        }
        return Ok(Incoming::Foreign(packet.fds));
    }
    if packet.bytes.is_empty() {
        return Ok(Incoming::Closed);
    }
    if packet.is_truncated {
        return Ok(Incoming::Malformed(RequestError::invalid(
            "the request is larger than a packet may be",
        )));
    }

    match request {
        Ok(request) => Ok(Incoming::Request(request, packet.fds)),
        Err(error) => Ok(Incoming::Malformed(RequestError::invalid(format!(
            "the request cannot be read; are session and root daemon of the same version? {error}"
        )))),
    }
}

/// Returns whether it is a file of nsfs, whose close nobody can delay.
fn is_namespace(fd: &OwnedFd) -> bool {
    fstatfs(fd).is_ok_and(|found| found.f_type == libc::NSFS_MAGIC)
}

/// Returns whether it is a TCP socket, whose close its owner can delay.
fn is_tcp_socket(fd: &OwnedFd) -> bool {
    let is_ip = |family| family == AddressFamily::INET || family == AddressFamily::INET6;

    socket_domain(fd).is_ok_and(is_ip)
        && socket_type(fd).is_ok_and(|it| it == SocketType::STREAM)
        && socket_protocol(fd).is_ok_and(|it| it == Some(ipproto::TCP))
}

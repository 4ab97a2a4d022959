//! The sockets of the calling thread's network namespace: the kernel lists and ends them
//! (sock_diag(7), `linux/inet_diag.h`).
//!
//! Knows requests, answers and filters; which sockets are wanted is for its users.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{io, net::SocketAddrV4, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::{Errno, read, write},
    net::{
        AddressFamily, SocketFlags, SocketType, netlink, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

pub use answer::{DiagMessage, INET_DIAG_MARK, INET_DIAG_SKV6ONLY};
pub use filter::{Condition, End, SocketFilter};

use answer::ADDRESS_IN_ID;

mod answer;
mod filter;

/// IPv4.
pub const AF_INET: u8 = 2;
/// IPv6; also IPv4 in the mapped form, of sockets for both.
pub const AF_INET6: u8 = 10;
/// TCP.
pub const IPPROTO_TCP: u8 = 6;
/// UDP.
pub const IPPROTO_UDP: u8 = 17;
/// The state of a TCP connection that is open both ways.
pub const TCP_ESTABLISHED: u8 = 1;
/// The state of a TCP socket that nobody owns any longer.
pub const TCP_TIME_WAIT: u8 = 6;
/// The state of a TCP socket that listens.
pub const TCP_LISTEN: u8 = 10;
/// Sockets in every state, as a set of bits.
pub const ALL_STATES: u32 = 0x1fff;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_REQ_BYTECODE: u16 = 1;

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = 56;
/// Length of a [`SocketId`].
pub const ID_LEN: usize = 48;

const BUFFER_LEN: usize = 64 << 10;
/// For the description of one socket.
const ANSWER_BUFFER_LEN: usize = 1024;
/// The kernel answers at once; this is for one that does not.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Answers of the kernel to one request. A longer list is an error.
const MAX_READS: usize = 1 << 16;

/// `struct inet_diag_sockid`: ports, addresses, interface and cookie of a socket.
pub type SocketId = [u8; ID_LEN];

/// Any socket.
pub const ANY_SOCKET: SocketId = [0; ID_LEN];
/// `INET_DIAG_NOCOOKIE`, twice: whichever socket has the addresses.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// What sockets are asked for.
#[derive(Debug, Clone)]
pub struct SocketQuery {
    /// [`AF_INET`] or [`AF_INET6`].
    pub family: u8,
    /// [`IPPROTO_TCP`] or [`IPPROTO_UDP`].
    pub protocol: u8,
    /// A bit for each state: `1 << TCP_LISTEN`.
    pub states: u32,
    /// In a list, the port of this end is compared if it is not 0, and nothing else.
    pub id: SocketId,
    /// Further conditions on a list.
    pub filter: SocketFilter,
}

/// A socket to ask by.
#[derive(Debug)]
pub struct SockDiag(OwnedFd);

impl SockDiag {
    /// Asks in the network namespace that the calling thread is in now.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;

        Ok(Self(socket))
    }

    /// Shows `each` the sockets, in the kernel's order. The kernel's table is walked in parts, between
    /// which a socket can be missed. After an error, the next question needs another `SockDiag`.
    ///
    /// # Errors
    ///
    /// The kernel's; also if it lists sockets without end.
    pub fn list(
        &self,
        query: &SocketQuery,
        mut each: impl FnMut(DiagMessage<'_>),
    ) -> io::Result<()> {
        write(&self.0, &query.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP))?;
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..MAX_READS {
            let len = read(&self.0, &mut *buffer)?;
            let mut rest = &buffer[..len];
            while let Some((kind, body, next)) = message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(error_in(body)),
                    _ => DiagMessage::new(body).into_iter().for_each(&mut each),
                }
                rest = next;
            }
        }

        Err(io::Error::other("the kernel lists sockets without end"))
    }

    /// What `read` makes of the socket with exactly this id; without such a connection, of one that
    /// listens there.
    ///
    /// # Errors
    ///
    /// The kernel's, [`NotFound`](io::ErrorKind::NotFound) without a socket.
    pub fn find<T>(
        &self,
        query: &SocketQuery,
        read: impl FnOnce(DiagMessage<'_>) -> T,
    ) -> io::Result<T> {
        let mut buffer = [0; ANSWER_BUFFER_LEN];
        let answer = match self.ask(query, SOCK_DIAG_BY_FAMILY, 0, &mut buffer)? {
            Some((NLMSG_ERROR, body)) => return Err(error_in(body)),
            Some((_, body)) => DiagMessage::new(body),
            None => None,
        };

        answer
            .map(read)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ends the socket with this id: its owner sees ECONNABORTED, and a TCP peer a reset.
    ///
    /// # Errors
    ///
    /// The kernel's, [`NotFound`](io::ErrorKind::NotFound) if the socket has gone.
    pub fn destroy(&self, family: u8, protocol: u8, id: &SocketId) -> io::Result<()> {
        let query = SocketQuery {
            family,
            protocol,
            states: ALL_STATES,
            id: *id,
            filter: SocketFilter::default(),
        };
        let mut buffer = [0; ANSWER_BUFFER_LEN];
        match self.ask(&query, SOCK_DESTROY, NLM_F_ACK, &mut buffer)? {
            Some((NLMSG_ERROR, body)) if body.starts_with(&[0; 4]) => Ok(()),
            Some((NLMSG_ERROR, body)) => Err(error_in(body)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// A question with one message as its answer: that message's kind and body.
    fn ask<'a>(
        &self,
        query: &SocketQuery,
        kind: u16,
        flags: u16,
        buffer: &'a mut [u8],
    ) -> io::Result<Option<(u16, &'a [u8])>> {
        write(&self.0, &query.request(kind, flags))?;
        let len = read(&self.0, &mut *buffer)?;

        Ok(message(&buffer[..len]).map(|(kind, body, _)| (kind, body)))
    }
}

impl SocketQuery {
    fn request(&self, kind: u16, flags: u16) -> Vec<u8> {
        let filter = self.filter.program();
        let attribute = match filter.len() {
            0 => 0,
            len => 4 + len,
        };
        let len = HEADER_LEN + REQUEST_LEN + attribute;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend((len as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([self.family, self.protocol, 0, 0]);
        bytes.extend(self.states.to_ne_bytes());
        bytes.extend(self.id);
        if attribute > 0 {
            let attribute = u16::try_from(attribute).expect("SocketFilter::MAX fit");
            bytes.extend(attribute.to_ne_bytes());
            bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
            bytes.extend(filter);
        }

        bytes
    }
}

/// The socket with these two ends.
pub fn socket_id(own: SocketAddrV4, peer: SocketAddrV4) -> SocketId {
    let mut id = ANY_SOCKET;
    for (n, end) in [own, peer].into_iter().enumerate() {
        id[2 * n..][..2].copy_from_slice(&end.port().to_be_bytes());
        id[ADDRESS_IN_ID[n]..][..4].copy_from_slice(&end.ip().octets());
    }
    id[ID_LEN - NO_COOKIE.len()..].copy_from_slice(&NO_COOKIE);

    id
}

/// Returns whether the kernel does not know sockets of this kind, as one without IPv6.
pub fn is_unknown(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::AFNOSUPPORT | Errno::INVAL)
    )
}

/// Splits off one message: its kind, its body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_LEN..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();

    Some((kind, body, next))
}

fn error_in(body: &[u8]) -> io::Error {
    let code = body.get(..4).and_then(|code| code.try_into().ok());

    code.map_or(io::ErrorKind::InvalidData.into(), |code| {
        io::Error::from_raw_os_error(-i32::from_ne_bytes(code))
    })
}

#[cfg(test)]
mod tests;

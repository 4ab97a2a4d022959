//! The established TCP connections of this thread's network namespace: the kernel lists and ends them
//! (sock_diag(7)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::{Errno, read, write},
    net::{
        AddressFamily, SocketFlags, SocketType, netlink, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// TCP_ESTABLISHED, as a bit.
const ESTABLISHED: u32 = 1 << 1;

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = 56;
/// `struct inet_diag_sockid`, and where it is in `struct inet_diag_msg`.
const ID_LEN: usize = 48;
const ID_IN_ANSWER: usize = 4;
const DESTINATION_IN_ID: usize = 20;
const ANSWER_LEN: usize = 72;

/// A condition of a filter, with the jump after it.
const CONDITION_LEN: usize = 16;
const JUMP_LEN: usize = 4;

const BUFFER_LEN: usize = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Answers of the kernel to one request. A longer list is cut.
const MAX_READS: usize = 1 << 14;

/// A connection of a socket that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Established {
    family: u8,
    id: [u8; ID_LEN],
    pub(crate) port: u16,
    pub(crate) peer: IpAddr,
    /// Of its socket.
    pub(crate) mark: u32,
}

/// A socket to ask by.
pub(crate) struct Diag(OwnedFd);

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;

        Ok(Self(socket))
    }

    /// Shows `each` the connections to these local ports.
    pub(crate) fn list(&self, ports: &[u16], mut each: impl FnMut(Established)) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        for family in [AF_INET, AF_INET6] {
            let request = request(
                SOCK_DIAG_BY_FAMILY,
                NLM_F_DUMP,
                family,
                &[0; ID_LEN],
                &filter(ports),
            );
            match self.dump(&request, &mut each) {
                // A kernel without IPv6.
                Err(error) if family == AF_INET6 && is_unknown(&error) => {}
                dumped => dumped?,
            }
        }

        Ok(())
    }

    fn dump(&self, request: &[u8], each: &mut impl FnMut(Established)) -> io::Result<()> {
        write(&self.0, request)?;
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..MAX_READS {
            let len = read(&self.0, &mut *buffer)?;
            let mut rest = &buffer[..len];
            while let Some((kind, body, next)) = message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(error_in(body)),
                    _ => established(body).into_iter().for_each(&mut *each),
                }
                rest = next;
            }
        }

        Err(io::Error::other("the kernel lists connections without end"))
    }

    /// Resets a connection; returns whether it was still there.
    pub(crate) fn destroy(&self, connection: &Established) -> io::Result<bool> {
        let Established { family, id, .. } = connection;
        write(&self.0, &request(SOCK_DESTROY, NLM_F_ACK, *family, id, &[]))?;
        let mut buffer = [0; 1024];
        let len = read(&self.0, &mut buffer)?;
        match message(&buffer[..len]) {
            Some((NLMSG_ERROR, body, _)) if body.starts_with(&[0; 4]) => Ok(true),
            Some((NLMSG_ERROR, body, _)) => match error_in(body) {
                error if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(false),
                error => Err(error),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::AFNOSUPPORT | Errno::INVAL)
    )
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID_LEN], filter: &[u8]) -> Vec<u8> {
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
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(ESTABLISHED.to_ne_bytes());
    bytes.extend(id);
    if attribute > 0 {
        bytes.extend((attribute as u16).to_ne_bytes());
        bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        bytes.extend(filter);
    }

    bytes
}

/// A program for the kernel that accepts sockets with one of these local ports: a chain of conditions.
/// If one holds, the jump after it leads to the end of the program, which accepts. If not, it leads to
/// the next condition; the last one leads beyond the end, which refuses.
fn filter(ports: &[u16]) -> Vec<u8> {
    let total = ports.len() * CONDITION_LEN - JUMP_LEN;
    let mut program = Vec::with_capacity(total);
    for (n, port) in ports.iter().enumerate() {
        if n > 0 {
            let to_end = (total - program.len()) as u16;
            program.extend([INET_DIAG_BC_JMP, JUMP_LEN as u8]);
            program.extend(to_end.to_ne_bytes());
        }
        program.extend([INET_DIAG_BC_S_COND, (CONDITION_LEN - JUMP_LEN) as u8]);
        program.extend((CONDITION_LEN as u16).to_ne_bytes());
        // `struct inet_diag_hostcond`, of any address.
        program.extend([0; 4]);
        program.extend(i32::from(*port).to_ne_bytes());
    }

    program
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

/// `None` also without a mark, which the kernel tells to whoever may end the connection.
fn established(body: &[u8]) -> Option<Established> {
    let family = *body.first()?;
    let id: [u8; ID_LEN] = body
        .get(ID_IN_ANSWER..ID_IN_ANSWER + ID_LEN)?
        .try_into()
        .ok()?;
    let peer: [u8; 16] = id[DESTINATION_IN_ID..DESTINATION_IN_ID + 16]
        .try_into()
        .ok()?;
    let peer = match family {
        AF_INET => Ipv4Addr::new(peer[0], peer[1], peer[2], peer[3]).into(),
        AF_INET6 => IpAddr::from(Ipv6Addr::from(peer)).to_canonical(),
        _ => return None,
    };

    Some(Established {
        family,
        id,
        port: u16::from_be_bytes([id[0], id[1]]),
        peer,
        mark: mark(body.get(ANSWER_LEN..)?)?,
    })
}

fn mark(mut attributes: &[u8]) -> Option<u32> {
    loop {
        let len = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..len)?;
        if kind == INET_DIAG_MARK {
            return Some(u32::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(family: u8, peer: &[u8], mark: Option<u32>) -> Vec<u8> {
        let mut body = vec![0; ANSWER_LEN];
        body[0] = family;
        body[ID_IN_ANSWER..ID_IN_ANSWER + 2].copy_from_slice(&8080_u16.to_be_bytes());
        let at = ID_IN_ANSWER + DESTINATION_IN_ID;
        body[at..at + peer.len()].copy_from_slice(peer);
        // An attribute of one byte, and what pads it.
        body.extend(5_u16.to_ne_bytes());
        body.extend([8, 0, 3, 0, 0, 0]);
        if let Some(mark) = mark {
            body.extend(8_u16.to_ne_bytes());
            body.extend(INET_DIAG_MARK.to_ne_bytes());
            body.extend(mark.to_ne_bytes());
        }

        body
    }

    #[test]
    fn an_answer_tells_port_peer_and_mark() {
        let found = established(&answer(AF_INET, &[10, 0, 0, 1], Some(7))).unwrap();
        assert_eq!((found.port, found.mark), (8080, 7));
        assert_eq!(found.peer.to_string(), "10.0.0.1");

        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        let found = established(&answer(AF_INET6, &mapped, Some(0))).unwrap();
        assert_eq!(found.peer.to_string(), "10.0.0.2");
        assert_eq!(established(&answer(AF_INET, &[10, 0, 0, 1], None)), None);
    }

    #[test]
    fn what_is_cut_off_is_ignored() {
        let whole = answer(AF_INET, &[10, 0, 0, 1], Some(7));

        for len in 0..whole.len() {
            assert_eq!(established(&whole[..len]), None, "{len}");
        }
        assert!(message(&[0; 16]).is_none());
        assert!(message(&[255; 16]).is_none());
        assert!(mark(&[0; 8]).is_none());
    }
}

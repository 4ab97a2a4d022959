//! Ends sockets that are connected to an alias, so that no application waits for a session that
//! is gone: they see ECONNABORTED.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = 56;
/// `struct inet_diag_sockid` in a request and in an answer.
const ID_LEN: usize = 48;
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
const DESTINATION_IN_ID: usize = 20;

/// All but TIME_WAIT (6) and LISTEN (10).
const STATES: u32 = 0x1fff & !(1 << 6) & !(1 << 10);

const KINDS: [(u8, u8); 4] = [
    (AF_INET, IPPROTO_TCP),
    (AF_INET6, IPPROTO_TCP),
    (AF_INET, IPPROTO_UDP),
    (AF_INET6, IPPROTO_UDP),
];
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// A dump that is longer is cut: what remains ends by its own time-outs.
const MAX_ANSWERS: usize = 1 << 20;

/// Ends every socket of the calling thread's network namespace whose peer is in `aliases`;
/// returns how many there were.
pub(super) fn destroy_sockets_to(aliases: Ipv4Net) -> usize {
    let mut destroyed = 0;
    for (family, protocol) in KINDS {
        // A kernel without the module for one kind still has the others.
        let Ok(ids) = sockets_to(aliases, family, protocol) else {
            continue;
        };
        for id in ids {
            if destroy(family, protocol, &id).is_ok() {
                destroyed += 1;
            }
        }
    }

    destroyed
}

type SocketId = [u8; ID_LEN];

fn sockets_to(aliases: Ipv4Net, family: u8, protocol: u8) -> io::Result<Vec<SocketId>> {
    let mut netlink = open()?;
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = request(SOCK_DIAG_BY_FAMILY, flags, family, protocol, &[0; ID_LEN]);
    netlink.write_all(&request)?;

    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..MAX_ANSWERS {
        let len = netlink.read(&mut buffer)?;
        let mut rest = &buffer[..len];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(error_of(body)),
                _ => found.extend(matching_id(body, aliases)),
            }
            rest = next;
        }
    }

    Ok(found)
}

fn destroy(family: u8, protocol: u8, id: &SocketId) -> io::Result<()> {
    let mut netlink = open()?;
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    netlink.write_all(&request(SOCK_DESTROY, flags, family, protocol, id))?;
    let mut buffer = [0; 1024];
    let len = netlink.read(&mut buffer)?;
    match message(&buffer[..len]) {
        Some((NLMSG_ERROR, body, _)) if body.starts_with(&[0; 4]) => Ok(()),
        Some((NLMSG_ERROR, body, _)) => Err(error_of(body)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn open() -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Protocol::from(NETLINK_SOCK_DIAG);
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;

    Ok(socket)
}

fn request(kind: u16, flags: u16, family: u8, protocol: u8, id: &SocketId) -> Vec<u8> {
    let len = HEADER_LEN + REQUEST_LEN;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend((len as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    debug_assert_eq!(bytes.len(), HEADER_LEN + ID_IN_REQUEST);
    bytes.extend(id);

    bytes
}

/// Splits off one message: its kind, its body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_LEN..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();

    Some((kind, body, next))
}

fn error_of(body: &[u8]) -> io::Error {
    body.get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(io::ErrorKind::InvalidData.into(), |code| {
            io::Error::from_raw_os_error(-i32::from_ne_bytes(code))
        })
}

fn matching_id(body: &[u8], aliases: Ipv4Net) -> Option<SocketId> {
    let family = *body.first()?;
    let id: SocketId = body
        .get(ID_IN_ANSWER..ID_IN_ANSWER + ID_LEN)?
        .try_into()
        .ok()?;
    let destination: [u8; 16] = id[DESTINATION_IN_ID..DESTINATION_IN_ID + 16]
        .try_into()
        .ok()?;
    let address = match family {
        AF_INET => Ipv4Addr::new(
            destination[0],
            destination[1],
            destination[2],
            destination[3],
        ),
        AF_INET6 => Ipv6Addr::from(destination).to_ipv4_mapped()?,
        _ => return None,
    };

    aliases.contains(&address).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_in_the_alias_range_match() {
        let aliases = "198.18.0.0/16".parse().unwrap();

        assert!(matching_id(&answer(AF_INET, &[198, 18, 1, 0]), aliases).is_some());
        assert!(matching_id(&answer(AF_INET, &[198, 19, 1, 0]), aliases).is_none());
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 1, 0];
        assert!(matching_id(&answer(AF_INET6, &mapped), aliases).is_some());
    }

    #[test]
    fn truncated_answers_are_ignored() {
        let whole = answer(AF_INET, &[198, 18, 1, 0]);

        for len in 0..ID_IN_ANSWER + ID_LEN {
            assert!(matching_id(&whole[..len], "0.0.0.0/0".parse().unwrap()).is_none());
        }
        assert!(message(&[0; 16]).is_none());
        assert!(message(&[255; 16]).is_none());
    }

    fn answer(family: u8, destination: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 72];
        body[0] = family;
        let at = ID_IN_ANSWER + DESTINATION_IN_ID;
        body[at..at + destination.len()].copy_from_slice(destination);
        body
    }
}

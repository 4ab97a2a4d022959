//! Asks the kernel for sockets that have an alias, and ends those whose session is gone: instead of
//! waiting for it, applications see ECONNABORTED.

use std::{
    collections::BTreeSet,
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
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;
const INET_DIAG_BC_D_COND: u8 = 8;

const HEADER_LEN: usize = 16;
const FLAGS_IN_HEADER: usize = 6;
const REQUEST_LEN: usize = 56;
/// `struct inet_diag_sockid` in a request and in an answer.
const ID_LEN: usize = 48;
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
const SOURCE_IN_ID: usize = 4;
const DESTINATION_IN_ID: usize = 20;

/// All states but LISTEN (10), and TIME_WAIT (6), in which no process owns the socket.
const OWNED_STATES: u32 = 0x1fff & !(1 << 10) & !(1 << 6);

/// Length of a condition of a filter with the jump after it.
const CONDITION_LEN: usize = 20;
const JUMP_LEN: usize = 4;
/// Few enough that the jumps of a filter fit into 16 bits.
pub(crate) const MAX_ADDRESSES: usize = 1024;
/// Dumps for the addresses that were not found in earlier ones.
const MAX_ROUNDS: usize = 8;

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

/// A longer dump is cut: the other sockets end by their own time-outs.
const MAX_ANSWERS: usize = 1 << 20;

/// Ends every socket of the calling thread's network namespace whose peer is in `aliases`;
/// returns how many there were.
pub(crate) fn destroy_sockets_to(aliases: Ipv4Net) -> usize {
    let mut destroyed = 0;
    let Ok(mut netlink) = open() else {
        return destroyed;
    };
    for (family, protocol) in KINDS {
        // A kernel without the module for one kind still has the others.
        let Ok(ids) = sockets_to(aliases, family, protocol) else {
            continue;
        };
        for id in ids {
            if destroy(&mut netlink, family, protocol, &id).is_ok() {
                destroyed += 1;
            }
        }
    }

    destroyed
}

/// The end of a connection whose address is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Own,
    Peer,
}

/// Returns those of `addresses`, at most [`MAX_ADDRESSES`], that TCP sockets of the calling thread's
/// network namespace have at that end.
///
/// The kernel walks its table bucket by bucket, each under a lock, so a dump without sockets is
/// complete. A dump with sockets comes in parts, and between them sockets can be missed; so the
/// addresses that were not found are asked for again until a dump is empty.
pub(crate) fn addresses_in_use(addresses: &[Ipv4Addr], end: End) -> io::Result<BTreeSet<Ipv4Addr>> {
    let mut in_use = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        for round in 0.. {
            let not_found: Vec<_> = addresses
                .iter()
                .copied()
                .filter(|address| !in_use.contains(address))
                .collect();
            if not_found.is_empty() {
                break;
            }
            if round == MAX_ROUNDS {
                // An address that cannot be ruled out counts.
                in_use.extend(not_found);
                break;
            }
            let mut found = BTreeSet::new();
            let filter = filter(&not_found, end);
            let request = request(
                SOCK_DIAG_BY_FAMILY,
                family,
                IPPROTO_TCP,
                OWNED_STATES,
                &[0; ID_LEN],
            );
            dump(with_filter(request, &filter), |body| {
                found.extend(address_of(body, end));
            })?;
            if found.is_empty() {
                break;
            }
            in_use.extend(found);
        }
    }

    Ok(in_use)
}

type SocketId = [u8; ID_LEN];

fn sockets_to(aliases: Ipv4Net, family: u8, protocol: u8) -> io::Result<Vec<SocketId>> {
    let mut found = Vec::new();
    let request = request(
        SOCK_DIAG_BY_FAMILY,
        family,
        protocol,
        OWNED_STATES,
        &[0; ID_LEN],
    );
    let dumped = dump(request, |body| found.extend(matching_id(body, aliases)));
    if found.is_empty() {
        dumped?;
    }

    Ok(found)
}

/// Passes the body of every answer to `each`; fails unless the dump is complete.
fn dump(mut request: Vec<u8>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut netlink = open()?;
    request[FLAGS_IN_HEADER..FLAGS_IN_HEADER + 2]
        .copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    netlink.write_all(&request)?;

    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..MAX_ANSWERS {
        let len = netlink.read(&mut buffer)?;
        let mut rest = &buffer[..len];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error_of(body)),
                _ => each(body),
            }
            rest = next;
        }
    }

    Err(io::Error::other("the kernel lists sockets without end"))
}

fn destroy(netlink: &mut Socket, family: u8, protocol: u8, id: &SocketId) -> io::Result<()> {
    netlink.write_all(&request(SOCK_DESTROY, family, protocol, OWNED_STATES, id))?;
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

fn request(kind: u16, family: u8, protocol: u8, states: u32, id: &SocketId) -> Vec<u8> {
    let len = HEADER_LEN + REQUEST_LEN;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend((len as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    debug_assert_eq!(bytes.len(), HEADER_LEN + ID_IN_REQUEST);
    bytes.extend(id);

    bytes
}

/// Adds a filter to the request of a dump.
fn with_filter(mut request: Vec<u8>, filter: &[u8]) -> Vec<u8> {
    let attribute = u16::try_from(4 + filter.len()).expect("MAX_ADDRESSES fit");
    request.extend(attribute.to_ne_bytes());
    request.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    request.extend(filter);
    let len = u32::try_from(request.len()).expect("small");
    request[..4].copy_from_slice(&len.to_ne_bytes());

    request
}

/// A program for the kernel that accepts sockets with one of the addresses at that end, also in the
/// IPv4-mapped form.
///
/// It is a chain of conditions. If one holds, the jump after it leads to the end of the program,
/// which accepts. If not, it leads to the next condition; the last one leads beyond the end, which
/// refuses.
fn filter(addresses: &[Ipv4Addr], end: End) -> Vec<u8> {
    let code = match end {
        End::Own => INET_DIAG_BC_S_COND,
        End::Peer => INET_DIAG_BC_D_COND,
    };
    let any_port = (-1_i32).to_ne_bytes();
    let total = addresses.len() * CONDITION_LEN - JUMP_LEN;
    let mut program = Vec::with_capacity(total);
    for (n, address) in addresses.iter().enumerate() {
        if n > 0 {
            let to_end = u16::try_from(total - program.len()).expect("MAX_ADDRESSES fit");
            program.extend([INET_DIAG_BC_JMP, JUMP_LEN as u8]);
            program.extend(to_end.to_ne_bytes());
        }
        program.extend([code, (CONDITION_LEN - JUMP_LEN) as u8]);
        program.extend((CONDITION_LEN as u16).to_ne_bytes());
        program.extend([AF_INET, 32, 0, 0]);
        program.extend(any_port);
        program.extend(address.octets());
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

fn error_of(body: &[u8]) -> io::Error {
    body.get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(io::ErrorKind::InvalidData.into(), |code| {
            io::Error::from_raw_os_error(-i32::from_ne_bytes(code))
        })
}

fn matching_id(body: &[u8], aliases: Ipv4Net) -> Option<SocketId> {
    let address = address_of(body, End::Peer)?;

    aliases.contains(&address).then(|| id_of(body)).flatten()
}

fn id_of(body: &[u8]) -> Option<SocketId> {
    body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID_LEN)?
        .try_into()
        .ok()
}

fn address_of(body: &[u8], end: End) -> Option<Ipv4Addr> {
    let at = match end {
        End::Own => SOURCE_IN_ID,
        End::Peer => DESTINATION_IN_ID,
    };
    let address: [u8; 16] = id_of(body)?[at..at + 16].try_into().ok()?;
    match *body.first()? {
        AF_INET => Some(Ipv4Addr::new(
            address[0], address[1], address[2], address[3],
        )),
        AF_INET6 => Ipv6Addr::from(address).to_ipv4_mapped(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

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

    #[test]
    fn sockets_are_found_by_either_end_among_many_addresses() {
        let listener = TcpListener::bind("127.86.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mapped = format!(
            "[::ffff:127.86.0.1]:{}",
            listener.local_addr().unwrap().port()
        );
        let own = stream.local_addr().unwrap().ip();
        let mut asked: Vec<Ipv4Addr> = (0..1000_u32)
            .map(|n| (u32::from(Ipv4Addr::new(127, 87, 0, 0)) + n).into())
            .collect();
        asked.insert(500, Ipv4Addr::new(127, 86, 0, 1));

        let peers = addresses_in_use(&asked, End::Peer).unwrap();
        let ends = addresses_in_use(&asked, End::Own).unwrap();
        drop(stream);
        let dual_stack = TcpStream::connect(mapped).unwrap();
        let mapped_peers = addresses_in_use(&asked, End::Peer).unwrap();

        let expected = BTreeSet::from([Ipv4Addr::new(127, 86, 0, 1)]);
        assert_eq!(peers, expected, "from {own}");
        // The accepted end.
        assert_eq!(ends, expected);
        assert_eq!(mapped_peers, expected);
        drop(dual_stack);
        assert_eq!(addresses_in_use(&[], End::Peer).unwrap(), BTreeSet::new());
    }

    fn answer(family: u8, destination: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 72];
        body[0] = family;
        let at = ID_IN_ANSWER + DESTINATION_IN_ID;
        body[at..at + destination.len()].copy_from_slice(destination);
        body
    }
}

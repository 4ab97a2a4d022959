//! Asks the kernel for sockets that have an alias, and ends those whose session is gone: instead of
//! waiting for it, applications see ECONNABORTED.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use tp_sock_diag::{
    AF_INET, AF_INET6, ALL_STATES, ANY_SOCKET, Condition, DiagMessage, End, IPPROTO_TCP,
    IPPROTO_UDP, SockDiag, SocketFilter, SocketQuery, TCP_LISTEN, TCP_TIME_WAIT,
};

/// States in which a process owns the socket, and it has a peer.
const OWNED_STATES: u32 = ALL_STATES & !(1 << TCP_LISTEN) & !(1 << TCP_TIME_WAIT);
/// Dumps for the addresses that were not found in earlier ones.
const MAX_ROUNDS: usize = 8;

const KINDS: [(u8, u8); 4] = [
    (AF_INET, IPPROTO_TCP),
    (AF_INET6, IPPROTO_TCP),
    (AF_INET, IPPROTO_UDP),
    (AF_INET6, IPPROTO_UDP),
];

/// Ends every socket of the calling thread's network namespace whose peer is in `aliases`;
/// returns how many there were.
pub(crate) fn destroy_sockets_to(aliases: Ipv4Net) -> usize {
    let mut destroyed = 0;
    for (family, protocol) in KINDS {
        // A list that was cut leaves unread answers behind.
        let (Ok(list), Ok(destroy)) = (SockDiag::open(), SockDiag::open()) else {
            return destroyed;
        };
        let mut ids = Vec::new();
        // A kernel without the module for one kind still has the others, and what was listed before an
        // error is ended.
        let _ = list.list(
            &owned(family, protocol, SocketFilter::default()),
            |socket| {
                if leads_to(&socket, aliases) {
                    ids.push(socket.id());
                }
            },
        );
        for id in ids {
            if destroy.destroy(family, protocol, &id).is_ok() {
                destroyed += 1;
            }
        }
    }

    destroyed
}

/// Returns those of `addresses`, at most [`SocketFilter::MAX`], that TCP sockets of the calling thread's
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
            let filter = SocketFilter::any_of(end, not_found.into_iter().map(Condition::Address));
            let query = owned(family, IPPROTO_TCP, filter);
            SockDiag::open()?.list(&query, |socket| found.extend(address_of(&socket, end)))?;
            if found.is_empty() {
                break;
            }
            in_use.extend(found);
        }
    }

    Ok(in_use)
}

fn owned(family: u8, protocol: u8, filter: SocketFilter) -> SocketQuery {
    SocketQuery {
        family,
        protocol,
        states: OWNED_STATES,
        id: ANY_SOCKET,
        filter,
    }
}

fn leads_to(socket: &DiagMessage<'_>, aliases: Ipv4Net) -> bool {
    address_of(socket, End::Peer).is_some_and(|peer| aliases.contains(&peer))
}

fn address_of(socket: &DiagMessage<'_>, end: End) -> Option<Ipv4Addr> {
    match socket.end(end)?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_peers_in_the_alias_range_match() {
        let aliases = "198.18.0.0/16".parse().unwrap();
        let matches = |family: u8, peer: &[u8]| {
            let mut body = [0; 72];
            body[0] = family;
            body[24..24 + peer.len()].copy_from_slice(peer);
            leads_to(&DiagMessage::new(&body).unwrap(), aliases)
        };

        assert!(matches(AF_INET, &[198, 18, 1, 0]));
        assert!(!matches(AF_INET, &[198, 19, 1, 0]));
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 1, 0];
        assert!(matches(AF_INET6, &mapped));
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
}

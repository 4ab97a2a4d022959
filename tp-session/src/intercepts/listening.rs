//! The sockets of this machine that listen.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `TCP_LISTEN` of the kernel, in the tables of `/proc`.
const LISTEN: &str = "0A";

/// The addresses at which something listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ListeningSockets(BTreeSet<SocketAddr>);

impl ListeningSockets {
    /// Those of this network namespace. Blocks for as long as the kernel walks its table.
    pub(super) fn read() -> io::Result<Self> {
        let mut found = Self::parse(&fs::read_to_string("/proc/thread-self/net/tcp")?);
        // Absent where IPv6 is switched off.
        if let Ok(table) = fs::read_to_string("/proc/thread-self/net/tcp6") {
            found.0.extend(Self::parse(&table).0);
        }

        Ok(found)
    }

    fn parse(table: &str) -> Self {
        let listening = table.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next()?;
            let state = fields.nth(1)?;
            (state == LISTEN).then(|| address(local)).flatten()
        });

        Self(listening.collect())
    }

    /// Returns whether a connection to `address` would find a socket. Of a wildcard of IPv6 the table does
    /// not say whether it takes IPv4 as well, as nearly all do.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let is_at = |ip: IpAddr| self.0.contains(&SocketAddr::new(ip, address.port()));
        let any_ip = is_at(address.ip()) || is_at(Ipv6Addr::UNSPECIFIED.into());
        match address.ip() {
            IpAddr::V4(ip) => {
                let mapped = ip.to_ipv6_mapped();
                any_ip || is_at(Ipv4Addr::UNSPECIFIED.into()) || is_at(mapped.into())
            }
            IpAddr::V6(_) => any_ip,
        }
    }
}

/// `0100007F:1F90`: words of 32 bits as this machine orders their bytes, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(words.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip: IpAddr = match words.len() {
        8 => word(0)?.into(),
        32 => {
            let all = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            <[u8; 16]>::try_from(all).ok()?.into()
        }
        _ => return None,
    };

    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_listens_on_this_machine_is_found_by_its_address_or_as_a_wildcard() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let all_port = all.local_addr().unwrap().port();

        let listening = ListeningSockets::read().unwrap();

        assert!(listening.has(one.local_addr().unwrap()));
        assert!(listening.has(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), all_port)));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
                     1: 0100007F:1F91 0100007F:1234 01 00000000:00000000 00:00000000 00000000\n   \
                     2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A\n   \
                     3: 00000000000000000000000000000000:0051 00000000000000000000000000000000:0000 0A\n   \
                     4: 0000000000000000FFFF00000100007F:0052 00000000000000000000000000000000:0000 0A\n   \
                     junk\n";
        let listening = ListeningSockets::parse(table);

        for (address, expected) in [
            ("127.0.0.1:8080", true),
            ("127.0.0.2:8080", false),
            ("[::1]:8080", false),
            ("127.0.0.1:8081", false),
            ("[::1]:80", true),
            ("127.0.0.1:80", false),
            ("127.0.0.1:81", true),
            ("[::1]:81", true),
            ("127.0.0.1:82", true),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(listening.has(address), expected, "{address}");
        }
    }
}

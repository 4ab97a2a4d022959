//! The addresses of a network namespace, as the kernel lists them in `/proc`. Pure: text in, addresses out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of a `/proc/PID/net/fib_trie`: a line with the address, then one that says what it is.
pub(crate) fn v4(fib_trie: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.filter(|it| !it.is_loopback())
            && !found.contains(&IpAddr::from(address))
        {
            found.push(address.into());
        }
    }

    found
}

/// Of a `/proc/PID/net/if_inet6`: a line begins with the digits of an address.
pub(crate) fn v6(if_inet6: &str) -> Vec<IpAddr> {
    let addresses = if_inet6.lines().filter_map(|line| {
        let digits = line.split(' ').next().filter(|it| it.len() == 32)?;
        let address = Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).ok()?);
        (!address.is_loopback()).then_some(address.into())
    });

    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.77.0.0/24 2 0 2
        |-- 10.77.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 2 0 2
        |-- 10.77.0.2
           /32 host LOCAL
        |-- 10.77.0.255
           /32 link BROADCAST
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
";
    const IF_INET6: &str = "\
fd770000000000000000000000000002 02 40 00 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
short 02 40 00 80     eth0
";

    #[test]
    fn only_addresses_of_the_host_count() {
        let own = |text: &str| text.parse::<IpAddr>().unwrap();

        assert_eq!(v4(FIB_TRIE), [own("10.77.0.2")]);
        assert_eq!(v6(IF_INET6), [own("fd77::2")]);
        assert!(v4("").is_empty() && v6("").is_empty());
    }
}

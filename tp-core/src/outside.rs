//! Addresses outside the cluster's networks that names of the cluster lead to: endpoints that
//! somebody entered by hand, pods on a node's network, targets of an ExternalName.
//!
//! They are steered for as long as they are in use. Anybody who can write Services can name any
//! address in the world, so their number is bounded and each expires.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// From the last answer with an address, or the last dial to it. Longer than programs commonly cache
/// an address, and too short for anybody to search for a stale one.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// Addresses that are kept. A further one replaces the least recently used.
pub const MAX_ADDRESSES: usize = 256;

/// The addresses, each with the time of its last use.
#[derive(Debug, Default)]
pub struct Outside(BTreeMap<Ipv4Addr, Instant>);

impl Outside {
    /// Adds an address from an answer. Returns whether it is new.
    pub fn learn(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        if self.renew(address, now) {
            return false;
        }
        if self.0.len() >= MAX_ADDRESSES
            && let Some(oldest) = self.oldest()
        {
            self.0.remove(&oldest);
        }
        self.0.insert(address, now);

        true
    }

    /// Notes a connection to `address`. Returns whether it is known; an unknown one is not added.
    pub fn renew(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        let used = self.0.get_mut(&address);

        used.map(|used| *used = now).is_some()
    }

    /// Forgets the addresses whose last use is [`LIFETIME`] ago. Returns whether there was one.
    pub fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0
            .retain(|_, used| now.saturating_duration_since(*used) < LIFETIME);

        self.0.len() < before
    }

    /// The addresses, in ascending order.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.0.keys().copied().collect()
    }

    fn oldest(&self) -> Option<Ipv4Addr> {
        let oldest = self.0.iter().min_by_key(|(_, used)| **used);

        oldest.map(|(address, _)| *address)
    }
}

/// True if `address` can be that of another machine: it is not "this network" (RFC 1122 section
/// 3.2.1.3), loopback, link-local (RFC 3927), multicast (RFC 5771) or limited broadcast.
pub fn is_elsewhere(address: Ipv4Addr) -> bool {
    let is_this_network = address.octets()[0] == 0;

    !(is_this_network
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Ipv4Addr {
        Ipv4Addr::from(0xc000_0200 + u32::try_from(number).unwrap())
    }

    #[test]
    fn an_address_is_forgotten_some_time_after_its_last_use() {
        let begin = Instant::now();
        let mut outside = Outside::default();
        assert!(outside.learn(address(1), begin));
        assert!(outside.learn(address(2), begin));
        let dialled = begin + LIFETIME / 2;
        assert!(outside.renew(address(2), dialled));
        assert!(!outside.renew(address(3), dialled));

        assert!(!outside.forget(begin + LIFETIME / 2));
        assert!(outside.forget(begin + LIFETIME));
        assert_eq!(outside.addresses(), [address(2)]);
        assert!(outside.forget(dialled + LIFETIME));
        assert!(outside.addresses().is_empty());
    }

    #[test]
    fn of_too_many_the_one_used_longest_ago_is_forgotten() {
        let begin = Instant::now();
        let mut outside = Outside::default();
        for number in 0..MAX_ADDRESSES {
            let after = Duration::from_secs(u64::try_from(number).unwrap());
            outside.learn(address(number), begin + after);
        }
        let now = begin + LIFETIME;
        assert!(!outside.learn(address(0), now));

        assert!(outside.learn(address(MAX_ADDRESSES), now));

        let known = outside.addresses();
        assert_eq!(known.len(), MAX_ADDRESSES);
        assert!(known.contains(&address(0)));
        assert!(!known.contains(&address(1)));
    }

    #[test]
    fn addresses_that_mean_this_machine_or_nobody_are_not_elsewhere() {
        for nobodys in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_elsewhere(nobodys.parse().unwrap()), "{nobodys}");
        }
        assert!(is_elsewhere(address(1)));
    }
}

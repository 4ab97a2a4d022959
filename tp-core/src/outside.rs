//! Addresses outside the cluster's networks that names of the cluster lead to: endpoints that
//! somebody entered by hand, pods on a node's network, targets of an ExternalName.
//!
//! They are steered for as long as they are in use. Who may write Services can name any address in
//! the world, which is why there are few of them, and why each is forgotten.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// How long an address is kept after the last answer with it and the last dial to it. Longer than
/// programs commonly keep an address, shorter than anybody would look for the reason.
pub const LIFE: Duration = Duration::from_secs(300);
/// How many addresses are kept. A further one takes the place of the one that was used longest ago.
pub const MOST: usize = 256;

/// The addresses, each with the time of its last use.
#[derive(Debug, Default)]
pub struct Outside(BTreeMap<Ipv4Addr, Instant>);

impl Outside {
    /// An answer leads to `address`. Returns whether it is new.
    pub fn learn(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        if self.renew(address, now) {
            return false;
        }
        if self.0.len() >= MOST
            && let Some(oldest) = self.oldest()
        {
            self.0.remove(&oldest);
        }
        self.0.insert(address, now);

        true
    }

    /// A connection goes to `address`. Returns whether it is known; an unknown one stays so.
    pub fn renew(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        let used = self.0.get_mut(&address);

        used.map(|used| *used = now).is_some()
    }

    /// Forgets the addresses whose last use is [`LIFE`] ago. Returns whether there was one.
    pub fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0
            .retain(|_, used| now.saturating_duration_since(*used) < LIFE);

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

/// Whether `address` can be that of another machine: it is not "this network" (RFC 1122 section
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
        let dialled = begin + LIFE / 2;
        assert!(outside.renew(address(2), dialled));
        assert!(!outside.renew(address(3), dialled));

        assert!(!outside.forget(begin + LIFE / 2));
        assert!(outside.forget(begin + LIFE));
        assert_eq!(outside.addresses(), [address(2)]);
        assert!(outside.forget(dialled + LIFE));
        assert!(outside.addresses().is_empty());
    }

    #[test]
    fn of_too_many_the_one_used_longest_ago_is_forgotten() {
        let begin = Instant::now();
        let mut outside = Outside::default();
        for number in 0..MOST {
            let after = Duration::from_secs(u64::try_from(number).unwrap());
            outside.learn(address(number), begin + after);
        }
        let now = begin + LIFE;
        assert!(!outside.learn(address(0), now));

        assert!(outside.learn(address(MOST), now));

        let known = outside.addresses();
        assert_eq!(known.len(), MOST);
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

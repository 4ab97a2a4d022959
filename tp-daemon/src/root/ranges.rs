//! Which addresses a bundle uses for its aliases and for its own link.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Routes shorter than this are defaults in disguise (a VPN's 0.0.0.0/1), not somebody's range.
const SHORTEST_RANGE: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) aliases: Ipv4Net,
    /// The workstation's end of the veth; outside of the aliases.
    pub(super) host: Ipv4Addr,
    /// The inner end, next hop of the aliases.
    pub(super) gateway: Ipv4Addr,
}

impl Range {
    fn new(aliases: (u8, u8, u8), prefix_len: u8, link: (u8, u8, u8)) -> Self {
        let aliases = Ipv4Addr::new(aliases.0, aliases.1, aliases.2, 0);

        Self {
            aliases: Ipv4Net::new(aliases, prefix_len).expect("a constant prefix length"),
            host: Ipv4Addr::new(link.0, link.1, link.2, 1),
            gateway: Ipv4Addr::new(link.0, link.1, link.2, 2),
        }
    }

    pub(super) fn alias_count(&self) -> u32 {
        1 << (32 - self.aliases.prefix_len())
    }

    /// The same with at most that many aliases, a power of two.
    pub(super) fn limited_to(self, count: u32) -> Self {
        let prefix_len = u8::try_from(32 - count.ilog2()).expect("at most 32");
        let prefix_len = prefix_len.max(self.aliases.prefix_len());

        Self {
            aliases: Ipv4Net::new(self.aliases.addr(), prefix_len).expect("at most 32"),
            ..self
        }
    }

    fn link(&self) -> Ipv4Net {
        Ipv4Net::new(self.host, 24)
            .expect("a constant prefix length")
            .trunc()
    }

    fn is_free(&self, in_use: &[Ipv4Net]) -> bool {
        in_use
            .iter()
            .filter(|network| network.prefix_len() >= SHORTEST_RANGE)
            .all(|network| !overlap(network, &self.aliases) && !overlap(network, &self.link()))
    }
}

/// Chooses the first range that overlaps nothing: of 198.18.0.0/15, which is reserved for
/// measuring networks, then of 240.0.0.0/4, which nobody routes.
pub(super) fn choose(in_use: &[Ipv4Net]) -> Option<Range> {
    candidates().find(|range| range.is_free(in_use))
}

fn candidates() -> impl Iterator<Item = Range> {
    let benchmarking = [
        Range::new((198, 18, 0), 16, (198, 19, 255)),
        Range::new((198, 19, 0), 17, (198, 19, 254)),
    ];
    let reserved = (0..64).map(|n| Range::new((240, n, 0), 16, (241, n, 255)));

    benchmarking.into_iter().chain(reserved)
}

fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_choice_is_the_benchmarking_range() {
        let range = choose(&[net("10.0.0.0/8"), net("192.168.1.0/24")]).unwrap();

        assert_eq!(range.aliases, net("198.18.0.0/16"));
        assert_eq!(range.host, Ipv4Addr::new(198, 19, 255, 1));
        assert_eq!(range.alias_count(), 65536);
    }

    #[test]
    fn two_bundles_never_share_addresses() {
        let mut in_use = Vec::new();

        for _ in 0..40 {
            let range = choose(&in_use).unwrap();
            in_use.extend([range.aliases, net(&format!("{}/32", range.gateway))]);
        }

        assert!(in_use.contains(&net("198.19.0.0/17")));
        assert!(in_use.contains(&net("240.0.0.0/16")));
    }

    #[test]
    fn a_split_default_route_is_nobodys_range() {
        let range = choose(&[net("0.0.0.0/1"), net("128.0.0.0/1")]).unwrap();

        assert_eq!(range.aliases, net("198.18.0.0/16"));
    }

    #[test]
    fn a_vpn_in_the_benchmarking_range_is_left_alone() {
        let range = choose(&[net("198.18.0.0/15")]).unwrap();

        assert_eq!(range.aliases, net("240.0.0.0/16"));
    }

    #[test]
    fn a_range_can_be_made_smaller() {
        let range = choose(&[]).unwrap();

        assert_eq!(range.limited_to(512).aliases, net("198.18.0.0/23"));
        assert_eq!(range.limited_to(1 << 20).aliases, range.aliases);
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }
}

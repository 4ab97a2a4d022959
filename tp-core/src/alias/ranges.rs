//! Chooses the addresses that a data path uses for its aliases and for its own link.
//!
//! They come from 240.0.0.0/4, which is reserved and which Linux routes like any other network.
//! Other software uses parts of it too: clouds for pods and nodes, proxies and meshes for addresses
//! that stand for names. So a block is drawn at random outside their usual ones, and only if no
//! network of this machine or of the cluster overlaps it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Routes shorter than this are defaults in disguise: a VPN's 0.0.0.0/1, or 224.0.0.0/3 where all
/// but private networks are listed.
const SHORTEST_RANGE: u8 = 4;
/// Used instead if no block is free otherwise.
const SHORTEST_RANGE_AT_NEED: u8 = 8;

/// First octets of the blocks. Left out: 240 (pods and nodes of clouds, automatic addresses of
/// meshes), 246 and 250 (virtual networks of other tools), 253 and 255 (tunnels, broadcast).
const FIRST_OCTETS: [u8; 10] = [241, 242, 243, 244, 245, 247, 248, 249, 251, 252];
/// Second octets are even: the odd half of each pair of blocks has the link.
const SECOND_OCTETS: u32 = 126;
const CANDIDATES: u32 = FIRST_OCTETS.len() as u32 * SECOND_OCTETS;
/// Coprime to the number of candidates, so that steps of this size meet each of them once, and
/// far from each other.
const STEP: u32 = 367;
const PREFIX_LEN: u8 = 16;

/// The addresses of one data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AliasRange {
    /// The alias with index `i` is the `i`-th address of this network.
    pub aliases: Ipv4Net,
    /// The workstation's end of the veth; outside of the aliases.
    pub host: Ipv4Addr,
    /// The inner end, next hop of the aliases.
    pub gateway: Ipv4Addr,
}

impl AliasRange {
    fn candidate(number: u32) -> Self {
        let first = FIRST_OCTETS[(number / SECOND_OCTETS) as usize % FIRST_OCTETS.len()];
        let second = 2 + 2 * (number % SECOND_OCTETS) as u8;

        Self {
            aliases: Ipv4Net::new(Ipv4Addr::new(first, second, 0, 0), PREFIX_LEN)
                .expect("a constant prefix length"),
            host: Ipv4Addr::new(first, second + 1, 255, 1),
            gateway: Ipv4Addr::new(first, second + 1, 255, 2),
        }
    }

    /// The number of addresses in `aliases`, a power of two.
    pub fn alias_count(&self) -> u32 {
        1 << (32 - self.aliases.prefix_len())
    }

    /// The same with at most that many aliases, a power of two.
    pub fn limited_to(self, count: u32) -> Self {
        let prefix_len = u8::try_from(32 - count.ilog2()).expect("at most 32");
        let prefix_len = prefix_len.max(self.aliases.prefix_len());

        Self {
            aliases: Ipv4Net::new(self.aliases.addr(), prefix_len).expect("at most 32"),
            ..self
        }
    }

    /// The network of the link.
    pub fn link(&self) -> Ipv4Net {
        Ipv4Net::new(self.host, 24)
            .expect("a constant prefix length")
            .trunc()
    }
}

/// The addresses of networks, as intervals in order: a user may have very many networks, and every
/// candidate is held against them.
struct Taken(Vec<(u32, u32)>);

impl Taken {
    fn of(in_use: &[Ipv4Net], shortest: u8) -> Self {
        let mut intervals: Vec<(u32, u32)> = in_use
            .iter()
            .filter(|network| network.prefix_len() >= shortest)
            .map(interval)
            .collect();
        intervals.sort_unstable();
        // What lies within another one goes, so that the ends are in order as well.
        intervals.dedup_by(|next, kept| next.1 <= kept.1);

        Self(intervals)
    }

    fn leaves(&self, range: &AliasRange) -> bool {
        !self.overlaps(&range.aliases) && !self.overlaps(&range.link())
    }

    fn overlaps(&self, network: &Ipv4Net) -> bool {
        let (first, last) = interval(network);
        let place = self.0.partition_point(|taken| taken.1 < first);

        self.0.get(place).is_some_and(|taken| taken.0 <= last)
    }
}

fn interval(network: &Ipv4Net) -> (u32, u32) {
    (network.network().into(), network.broadcast().into())
}

/// Chooses a range that overlaps none of the networks `in_use`; `seed` decides which one.
pub fn choose(in_use: &[Ipv4Net], seed: u32) -> Option<AliasRange> {
    [SHORTEST_RANGE, SHORTEST_RANGE_AT_NEED]
        .into_iter()
        .find_map(|shortest| {
            let taken = Taken::of(in_use, shortest);
            candidates(seed).find(|range| taken.leaves(range))
        })
}

/// The index of `address` among the aliases `base .. base + count`.
pub fn alias_index(address: Ipv4Addr, base: Ipv4Addr, count: u32) -> Option<u32> {
    u32::from(address)
        .checked_sub(u32::from(base))
        .filter(|index| *index < count)
}

fn candidates(seed: u32) -> impl Iterator<Item = AliasRange> {
    let start = seed % CANDIDATES;

    (0..CANDIDATES).map(move |n| AliasRange::candidate((start + n * STEP) % CANDIDATES))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
        a.contains(b) || b.contains(a)
    }

    #[test]
    fn no_candidate_is_a_range_that_others_are_known_to_use() {
        let known = [
            // Addresses that proxies give to names that they resolve themselves.
            "198.18.0.0/15",
            // Pods and nodes of clouds, meshes.
            "240.0.0.0/8",
            // Other tools of this kind.
            "246.246.0.0/16",
            "250.250.0.0/16",
            "253.0.0.0/8",
            // Limited broadcast.
            "255.0.0.0/8",
            "0.0.0.0/1",
            "127.0.0.0/8",
            "224.0.0.0/4",
        ];
        let all: BTreeSet<_> = candidates(0).map(|range| range.aliases).collect();

        assert_eq!(all.len(), CANDIDATES as usize, "each once");
        for range in candidates(0) {
            assert!(net("240.0.0.0/4").contains(&range.link()));
            assert!(!overlap(&range.aliases, &range.link()));
            for other in known.map(net) {
                assert!(!overlap(&other, &range.aliases), "{range:?}, {other}");
                assert!(!overlap(&other, &range.link()), "{range:?}, {other}");
            }
        }
    }

    #[test]
    fn the_seed_decides_which_range_is_taken() {
        let seeds = [0, 1, 1000, u32::MAX];
        let chosen: BTreeSet<_> = seeds
            .iter()
            .map(|seed| choose(&[], *seed).unwrap().aliases)
            .collect();

        assert_eq!(chosen.len(), seeds.len());
        assert!(chosen.iter().all(|aliases| aliases.prefix_len() == 16));
    }

    #[test]
    fn what_somebody_speaks_of_is_left_alone() {
        let first = choose(&[], 7).unwrap();
        for taken in [
            first.aliases,
            first.link(),
            Ipv4Net::new(first.host, 32).unwrap(),
            Ipv4Net::new(first.aliases.addr(), 8).unwrap().trunc(),
        ] {
            let range = choose(&[taken], 7).unwrap();

            assert!(!overlap(&taken, &range.aliases), "{taken}");
            assert!(!overlap(&taken, &range.link()), "{taken}");
        }
    }

    #[test]
    fn bundles_never_share_addresses() {
        let mut in_use = Vec::new();

        for _ in 0..40 {
            let range = choose(&in_use, 3).unwrap();
            in_use.extend([
                range.aliases,
                net(&format!("{}/32", range.host)),
                net(&format!("{}/32", range.gateway)),
            ]);
        }
        for (n, one) in in_use.iter().enumerate() {
            assert!(in_use[n + 1..].iter().all(|other| !overlap(one, other)));
        }
    }

    #[test]
    fn a_default_route_in_disguise_is_nobodys_range() {
        let disguised = ["0.0.0.0/1", "128.0.0.0/1", "192.0.0.0/2", "224.0.0.0/3"].map(net);

        assert_eq!(choose(&disguised, 5), choose(&[], 5));
        // The lesser evil: the whole class may be in use, but without a range nothing works.
        assert_eq!(choose(&[net("240.0.0.0/4")], 5), choose(&[], 5));
    }

    #[test]
    fn what_is_chosen_overlaps_none_of_many_random_networks() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let in_use: Vec<Ipv4Net> = (0..random.u32(..400))
                .map(|_| {
                    let address = Ipv4Addr::from(random.u32(0xf000_0000..));
                    Ipv4Net::new(address, random.u8(9..=32)).unwrap().trunc()
                })
                .collect();
            let is_free = |range: &AliasRange| {
                let both = [range.aliases, range.link()];
                !in_use
                    .iter()
                    .any(|it| both.iter().any(|own| overlap(it, own)))
            };

            let expected = candidates(seed as u32).find(is_free);
            // Where there is none, /8s would be next to be ignored, of which there are none.
            assert_eq!(choose(&in_use, seed as u32), expected, "seed {seed}");
        }
    }

    #[test]
    fn there_is_none_where_all_is_taken() {
        let all: Vec<Ipv4Net> = (240..=255).map(|n| net(&format!("{n}.0.0.0/8"))).collect();

        assert_eq!(choose(&all, 0), None);
    }

    #[test]
    fn a_range_can_be_made_smaller() {
        let range = choose(&[], 0).unwrap();

        let aliases = range.limited_to(512).aliases;

        assert_eq!(
            (aliases.addr(), aliases.prefix_len()),
            (range.aliases.addr(), 23)
        );
        assert_eq!(range.limited_to(1 << 20).aliases, range.aliases);
    }

    #[test]
    fn an_alias_has_an_index() {
        let base = Ipv4Addr::new(198, 18, 0, 0);

        assert_eq!(
            alias_index(Ipv4Addr::new(198, 18, 1, 2), base, 65_536),
            Some(258)
        );
        assert_eq!(
            alias_index(Ipv4Addr::new(198, 19, 0, 0), base, 65_536),
            None
        );
        assert_eq!(
            alias_index(Ipv4Addr::new(198, 17, 0, 0), base, 65_536),
            None
        );
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }
}

//! What a session does not get because others of its scope were opened earlier.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::{NetworkRule, Session, SessionRegistry, Slot};

/// What other sessions of the scope have taken from a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// Networks of the session that another one steers, wholly or in part, and which.
    pub networks: Vec<(IpNet, Slot)>,
    /// Name servers that another one serves, and which.
    pub name_servers: Vec<(SocketAddr, Slot)>,
}

impl SessionRegistry {
    /// What other sessions of its scope take from a session.
    pub fn overlaps(&self, slot: Slot) -> Overlaps {
        let Some(session) = self.sessions.get(&slot) else {
            return Overlaps::default();
        };
        let mut earlier: Vec<(&Session, Slot)> = self
            .sessions
            .iter()
            .filter(|(_, it)| it.scope == session.scope && it.order < session.order)
            .map(|(slot, it)| (it, *slot))
            .collect();
        earlier.sort_by_key(|(it, _)| it.order);
        let included: Vec<IpNet> = session.included().copied().collect();
        let mut networks: Vec<(IpNet, Option<Slot>)> =
            included.iter().map(|network| (*network, None)).collect();
        for (it, slot) in &earlier {
            for (taken, (_, first)) in it.steered_parts(&included).into_iter().zip(&mut networks) {
                *first = first.or(taken.then_some(*slot));
            }
        }
        let first_with = |server: &SocketAddr| {
            let first = earlier.iter().find(|(it, _)| it.has(*server))?;
            Some((*server, first.1))
        };

        Overlaps {
            networks: networks
                .into_iter()
                .filter_map(|(network, first)| Some((network, first?)))
                .collect(),
            name_servers: session.name_servers.iter().filter_map(first_with).collect(),
        }
    }
}

impl Session {
    /// For each of these networks, which are in order: whether it steers sockets to any address there.
    /// One pass, since a user may have very many networks on either side.
    fn steered_parts(&self, networks: &[IpNet]) -> Vec<bool> {
        let included: Vec<&IpNet> = self.included().collect();
        let mut rules = self.networks.iter().peekable();
        // Those around the network, the longest prefix last. What is not around it is around none of
        // the later ones.
        let mut around: Vec<(&IpNet, NetworkRule)> = Vec::new();

        networks
            .iter()
            .map(|network| {
                while let Some((next, rule)) = rules.next_if(|(next, _)| *next <= network) {
                    pop_unless_around(&mut around, next);
                    around.push((next, *rule));
                }
                pop_unless_around(&mut around, network);
                let is_within = around.last().map(|it| it.1) == Some(NetworkRule::Include);
                let place = included.partition_point(|it| *it < network);
                let next = included.get(place);

                is_within || next.is_some_and(|it| network.contains(*it))
            })
            .collect()
    }
}

fn pop_unless_around(networks: &mut Vec<(&IpNet, NetworkRule)>, network: &IpNet) {
    while networks
        .last()
        .is_some_and(|(last, _)| !last.contains(network))
    {
        networks.pop();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::sessions::{NetworkChanges, SessionScope};

    #[test]
    fn of_random_networks_those_are_taken_of_which_an_earlier_session_steers_a_part() {
        let scope = SessionScope {
            netns: 1,
            cgroup: None,
            uid: Some(7),
        };
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut networks = |prefix_lens: std::ops::RangeInclusive<u8>| -> Vec<IpNet> {
                (0..random.usize(..40))
                    .map(|_| {
                        let address = Ipv4Addr::from(0x0a60_0000 | random.u32(..) & 0xff);
                        IpNet::new(address.into(), random.u8(prefix_lens.clone())).unwrap()
                    })
                    .collect()
            };
            let mut changes = || NetworkChanges {
                include: networks(24..=32),
                exclude: networks(24..=32),
                remove: Vec::new(),
            };
            let mut sessions = SessionRegistry::default();
            let (first, _) = sessions.open(scope, Vec::new()).unwrap();
            let (second, _) = sessions.open(scope, Vec::new()).unwrap();
            sessions.steer(first, &changes()).unwrap();
            sessions.steer(second, &changes()).unwrap();

            let earlier = &sessions.sessions[&first];
            let is_taken = |network: &&IpNet| {
                earlier.rule_of(network) == Some(NetworkRule::Include)
                    || earlier.included().any(|it| network.contains(it))
            };
            let expected: Vec<(IpNet, Slot)> = sessions.sessions[&second]
                .included()
                .filter(is_taken)
                .map(|network| (*network, first))
                .collect();

            assert_eq!(sessions.overlaps(second).networks, expected, "seed {seed}");
        }
    }
}

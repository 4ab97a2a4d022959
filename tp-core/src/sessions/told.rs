//! The session's end of the changes of its networks.

use std::{cmp::Reverse, collections::BTreeMap};

use ipnet::IpNet;

use super::{MAX_NETWORKS, NetworkChanges, NetworkRule};

/// What the root daemon has been told of a session's networks.
///
/// Whatever was sent and not confirmed may have been carried out or not: it is told again, as far
/// as it is still wanted, and otherwise taken back.
#[derive(Debug, Clone, Default)]
pub struct ToldNetworks {
    told: BTreeMap<IpNet, Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The root daemon has this rule.
    Confirmed(NetworkRule),
    /// The root daemon may have a rule, and perhaps another one.
    Sent,
}

impl ToldNetworks {
    /// The changes that lead from what was told to these networks, each of at most `limit`
    /// networks. Sent in order, each destination goes from its old rule to its new one at once, unless
    /// the root daemon has no room for both.
    ///
    /// # Panics
    ///
    /// If `limit` is 0.
    pub fn changes(
        &self,
        include: &[IpNet],
        exclude: &[IpNet],
        limit: usize,
    ) -> Vec<NetworkChanges> {
        let mut wanted: BTreeMap<IpNet, NetworkRule> = BTreeMap::new();
        for (networks, rule) in [
            (include, NetworkRule::Include),
            (exclude, NetworkRule::Exclude),
        ] {
            wanted.extend(networks.iter().map(|network| (network.trunc(), rule)));
        }
        let mut surplus: Vec<Change> = self
            .told
            .keys()
            .filter(|network| !wanted.contains_key(network))
            .map(|network| (*network, None))
            .collect();
        surplus.sort_by_key(|(network, _)| network.prefix_len());
        let mut added: Vec<Change> = wanted
            .into_iter()
            .filter(|(network, rule)| self.told.get(network) != Some(&Told::Confirmed(*rule)))
            .map(|(network, rule)| (network, Some(rule)))
            .collect();
        added.sort_by_key(|(network, _)| Reverse(network.prefix_len()));

        let new = added.iter().filter(|it| !self.told.contains_key(&it.0));
        let has_room = self.told.len() + new.count() <= MAX_NETWORKS;
        let (first, last) = if has_room {
            (added, surplus)
        } else {
            (surplus, added)
        };
        let ordered = [first, last].concat();

        ordered.chunks(limit).map(one_change).collect()
    }

    /// The changes are on their way.
    pub fn handle_sent(&mut self, changes: &NetworkChanges) {
        let NetworkChanges {
            include,
            exclude,
            remove,
        } = changes;
        for network in include.iter().chain(exclude).chain(remove) {
            self.told.insert(*network, Told::Sent);
        }
    }

    /// The root daemon has carried the changes out.
    pub fn handle_confirmed(&mut self, changes: &NetworkChanges) {
        for network in &changes.remove {
            self.told.remove(network);
        }
        for (networks, rule) in [
            (&changes.include, NetworkRule::Include),
            (&changes.exclude, NetworkRule::Exclude),
        ] {
            for network in networks {
                self.told.insert(*network, Told::Confirmed(rule));
            }
        }
    }
}

type Change = (IpNet, Option<NetworkRule>);

fn one_change(networks: &[Change]) -> NetworkChanges {
    let mut changes = NetworkChanges::default();
    for (network, rule) in networks {
        match rule {
            Some(NetworkRule::Include) => changes.include.push(*network),
            Some(NetworkRule::Exclude) => changes.exclude.push(*network),
            None => changes.remove.push(*network),
        }
    }

    changes
}

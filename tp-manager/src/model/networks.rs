//! Networks as sets of addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Metadata services of providers that are not link-local: they give the node's credentials to any
/// program on it. Azure's wire server, Alibaba Cloud's, Oracle's second one; those of AWS
/// (metadata, name server, time, container credentials) and of Google by IPv6.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 5] = [
    aws(0x254),
    aws(0x253),
    aws(0x123),
    aws(0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

const fn aws(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, host)
}

/// Returns whether the address means the manager's own pod or node, or takes no connections.
pub(crate) fn is_nobodys(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
                || METADATA_V4.contains(&address)
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || METADATA_V6.contains(&address)
        }
    }
}

/// The first address after that of the network itself.
pub(crate) fn first(network: &IpNet) -> Option<IpAddr> {
    match network {
        IpNet::V4(network) => {
            let first = network.network().to_bits().checked_add(1)?;
            Some(Ipv4Addr::from_bits(first).into())
        }
        IpNet::V6(network) => {
            let first = network.network().to_bits().checked_add(1)?;
            Some(Ipv6Addr::from_bits(first).into())
        }
    }
}

pub(crate) fn is_in(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// Addresses by block, and the networks that cover them: not every network plugin allocates
/// addresses of pods from the networks that nodes declare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cover {
    blocks: BTreeMap<IpNet, BTreeSet<IpAddr>>,
}

impl Cover {
    pub(crate) fn of(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let mut blocks: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
        for address in addresses {
            blocks.entry(block(address)).or_default().insert(address);
        }

        Self { blocks }
    }

    /// Adds an address; returns whether the covering networks change.
    pub(crate) fn insert(&mut self, address: IpAddr, nodes: &BTreeSet<IpAddr>) -> bool {
        let block = block(address);
        let addresses = self.blocks.entry(block).or_default();
        let is_first = addresses.is_empty();
        let is_new = addresses.insert(address);

        is_new && (is_first || is_near_nodes(block, nodes))
    }

    /// Removes an address; returns whether the covering networks change.
    pub(crate) fn remove(&mut self, address: IpAddr, nodes: &BTreeSet<IpAddr>) -> bool {
        let block = block(address);
        let Some(addresses) = self.blocks.get_mut(&block) else {
            return false;
        };
        let was_there = addresses.remove(&address);
        let was_last = addresses.is_empty();
        if was_last {
            self.blocks.remove(&block);
        }

        was_there && (was_last || is_near_nodes(block, nodes))
    }

    /// `declared`, and a cover of the addresses.
    pub(crate) fn networks(&self, declared: &[IpNet], nodes: &BTreeSet<IpAddr>) -> Vec<IpNet> {
        let mut networks = declared.to_vec();
        for (block, addresses) in &self.blocks {
            if is_near_nodes(*block, nodes) {
                networks.extend(addresses.iter().copied().map(IpNet::from));
            } else {
                networks.push(*block);
            }
        }
        let mut networks = IpNet::aggregate(&networks);
        networks.sort();

        networks
    }
}

/// Returns whether nodes may share a network with the block, and with them databases and the API
/// server: of such a block only the addresses themselves are steered.
fn is_near_nodes(block: IpNet, nodes: &BTreeSet<IpAddr>) -> bool {
    let network = around(block);

    nodes
        .range(network.network()..=network.broadcast())
        .next()
        .is_some()
}

fn block(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
    network(address, length)
}

/// The network that `block` may be part of: clouds have subnets of up to 16,384 addresses.
fn around(block: IpNet) -> IpNet {
    let length = if block.addr().is_ipv4() { 18 } else { 64 };
    network(block.addr(), length)
}

fn network(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length)
        .expect("the length fits the family")
        .trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn declared_networks_are_joined() {
        let declared = networks(&["10.244.0.0/24", "10.244.1.0/24"]);

        let found = Cover::default().networks(&declared, &BTreeSet::new());

        assert_eq!(found, networks(&["10.244.0.0/23"]));
    }

    #[test]
    fn pods_outside_of_what_nodes_declare_are_covered() {
        let pods = addresses(&["10.1.2.3", "10.1.2.9"]);

        let found = Cover::of(pods.into_iter()).networks(&[], &BTreeSet::new());

        assert_eq!(found, networks(&["10.1.2.0/24"]));
    }

    #[test]
    fn a_cover_that_followed_its_addresses_is_that_of_the_addresses() {
        let nodes: BTreeSet<IpAddr> = addresses(&["10.0.1.200"]).into_iter().collect();
        let mut cover = Cover::default();
        let mut present = BTreeSet::new();
        let mut networks = Vec::new();
        let (mut told, mut kept) = (0, 0);
        for step in 0..4000u32 {
            // A step that is coprime to the number of addresses reaches each of them.
            let [_, _, third, fourth] = (step * 7919 % 1031).to_be_bytes();
            let address = IpAddr::from([10, third % 3 * 32, fourth % 4, fourth]);
            let is_other = if present.remove(&address) {
                cover.remove(address, &nodes)
            } else {
                present.insert(address);
                cover.insert(address, &nodes)
            };
            let fresh = Cover::of(present.iter().copied());
            assert_eq!(cover, fresh, "step {step}");
            let now = fresh.networks(&[], &nodes);
            assert!(is_other || networks == now, "step {step} is not told");
            networks = now;
            told += u32::from(is_other);
            kept += u32::from(!is_other);
        }

        assert!(told > 100 && kept > 100, "{told} told, {kept} not");
    }

    #[test]
    fn pods_beside_nodes_are_covered_one_by_one() {
        let pods = addresses(&["10.1.2.3"]);
        for (node, expected) in [
            ("10.1.2.200", "10.1.2.3/32"),
            // A database may be beside the pod.
            ("10.1.60.1", "10.1.2.3/32"),
            ("10.1.64.1", "10.1.2.0/24"),
        ] {
            let nodes = addresses(&[node]).into_iter().collect();

            let found = Cover::of(pods.iter().copied()).networks(&[], &nodes);

            assert_eq!(found, networks(&[expected]), "{node}");
        }
    }
}

//! Networks as sets of addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

/// The metadata service of a large provider has an IPv6 address that is not link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Addresses that mean the manager's own pod or node, or that no connection can have.
pub(crate) fn is_nobodys(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address == METADATA_V6
        }
    }
}

/// The networks that nodes declare, and a cover of the pods that are outside of them, because not
/// every network plugin allocates from what nodes declare.
pub(crate) fn pod_networks(
    declared: &[IpNet],
    pods: impl Iterator<Item = IpAddr>,
    nodes: &BTreeSet<IpAddr>,
) -> Vec<IpNet> {
    let mut blocks: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
    for pod in pods {
        if !declared.iter().any(|network| network.contains(&pod)) {
            blocks.entry(block(pod)).or_default().push(pod);
        }
    }

    let mut networks = declared.to_vec();
    for (block, pods) in blocks {
        // A node's own address must not be drawn into the tunnel.
        if nodes.iter().any(|node| block.contains(node)) {
            networks.extend(pods.into_iter().map(IpNet::from));
        } else {
            networks.push(block);
        }
    }
    let mut networks = IpNet::aggregate(&networks);
    networks.sort();

    networks
}

fn block(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
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

        let found = pod_networks(&declared, std::iter::empty(), &BTreeSet::new());

        assert_eq!(found, networks(&["10.244.0.0/23"]));
    }

    #[test]
    fn pods_outside_of_what_nodes_declare_are_covered() {
        let pods = addresses(&["10.1.2.3", "10.1.2.9"]);

        let found = pod_networks(&[], pods.into_iter(), &BTreeSet::new());

        assert_eq!(found, networks(&["10.1.2.0/24"]));
    }

    #[test]
    fn pods_beside_nodes_are_covered_one_by_one() {
        let pods = addresses(&["10.1.2.3"]);
        let nodes = addresses(&["10.1.2.200"]).into_iter().collect();

        let found = pod_networks(&[], pods.into_iter(), &nodes);

        assert_eq!(found, networks(&["10.1.2.3/32"]));
    }
}

//! Networks as sets of addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Metadata services of providers, as far as they are not link-local: they give credentials of the
/// node to whoever asks from there. Azure's wire server, Alibaba Cloud's, Oracle's second one; those of
/// AWS (metadata, name server, time, container credentials) and of Google by IPv6.
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
        // Where nodes are, the pods share a network with them, and perhaps with databases and the API
        // server: nothing but the pods is drawn into the tunnel.
        let network = around(block);
        let mut beside = nodes.range(network.network()..=network.broadcast());
        if beside.next().is_some() {
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
    network(address, length)
}

/// What may be one network with `block`: clouds have subnets of up to 16,384 addresses.
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
        for (node, expected) in [
            ("10.1.2.200", "10.1.2.3/32"),
            // A database may be beside the pod.
            ("10.1.60.1", "10.1.2.3/32"),
            ("10.1.64.1", "10.1.2.0/24"),
        ] {
            let nodes = addresses(&[node]).into_iter().collect();

            let found = pod_networks(&[], pods.iter().copied(), &nodes);

            assert_eq!(found, networks(&[expected]), "{node}");
        }
    }
}

//! What a user is told of connections that the pods had before, and of pods that nothing is known of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tp_proto::{
    local::{EarlierPeer, InterceptPod},
    tunnel::PodPortCounters,
};

use super::OwnIntercept;

/// Peers that are named of one pod.
const MAX_PEERS: usize = 4;
/// Pods that one sentence names.
const MAX_NAMES: usize = 5;

/// Adds the connections that the ports of the pod had before.
pub(super) fn add(shown: &mut InterceptPod, ports: &[PodPortCounters]) {
    for port in ports {
        add_port(shown, port);
    }
    // Before all ports are added, nobody knows who has the most.
    shown
        .earlier_from
        .sort_by_key(|peer| std::cmp::Reverse(peer.count));
    shown.earlier_from.truncate(MAX_PEERS);
}

fn add_port(shown: &mut InterceptPod, port: &PodPortCounters) {
    shown.earlier += port.earlier;
    shown.earlier_ended += port.earlier_ended;
    for peer in &port.earlier_from {
        let Some(address) = address(&peer.address) else {
            continue;
        };
        let address = address.to_string();
        let mut known = shown.earlier_from.iter_mut();
        match known.find(|it| it.address == address) {
            Some(known) => known.count += peer.count,
            None => shown.earlier_from.push(EarlierPeer {
                address,
                count: peer.count,
            }),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from);

    v4.map(IpAddr::from)
        .or_else(|_| v6().map(IpAddr::from))
        .ok()
}

/// A sentence about pods that were Ready when the intercept was asked for, and of which no agent has
/// said what became of them.
pub(super) fn unheard_of(entry: &OwnIntercept) -> Option<String> {
    let heard: Vec<&str> = entry
        .state
        .iter()
        .flat_map(|state| &state.pods)
        .map(|pod| pod.name.as_str())
        .collect();
    let wanted = &entry.wanted;
    let missing = wanted.pods.iter().filter(|pod| {
        let is_wanted = wanted.is_of_all_pods() || pod.name == wanted.replica();
        is_wanted && !heard.contains(&pod.name.as_str())
    });
    let missing: Vec<String> = missing
        .map(|pod| match pod.node.as_str() {
            "" => pod.name.clone(),
            node => format!("{} on {node}", pod.name),
        })
        .collect();
    let (what, them) = match missing.len() {
        0 => return None,
        1 => ("pod", "it"),
        _ => ("pods", "them"),
    };
    let others = match missing.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    let names = &missing[..missing.len().min(MAX_NAMES)];

    Some(format!(
        "not redirected yet, as no agent has said anything of {them}: {what} {}{others}; \
         `kubectl -n tp-agents get pods -o wide` shows whether an agent runs on each node",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use tp_proto::tunnel;

    use super::*;

    fn port(earlier: u64, from: &[(&[u8], u64)]) -> PodPortCounters {
        let peers = from.iter().map(|(address, count)| tunnel::EarlierPeer {
            address: address.to_vec().into(),
            count: *count,
        });

        PodPortCounters {
            earlier,
            earlier_from: peers.collect(),
            earlier_ended: 1,
            ..PodPortCounters::default()
        }
    }

    fn peers(shown: &InterceptPod) -> Vec<(&str, u64)> {
        let peers = shown.earlier_from.iter();

        peers.map(|it| (it.address.as_str(), it.count)).collect()
    }

    #[test]
    fn peers_of_several_ports_are_one_list() {
        let mut shown = InterceptPod::default();

        let ports = [
            port(3, &[(&[10, 0, 0, 1], 2), (&[10, 0, 0, 2], 1)]),
            // An agent of another version may name what nobody here understands.
            port(4, &[(&[10, 0, 0, 2], 3), (&[7], 1)]),
        ];
        add(&mut shown, &ports);

        assert_eq!((shown.earlier, shown.earlier_ended), (7, 2));
        assert_eq!(peers(&shown), [("10.0.0.2", 4), ("10.0.0.1", 2)]);
    }

    #[test]
    fn those_with_the_most_at_all_ports_are_named() {
        let mut shown = InterceptPod::default();
        let of_one: [&[u8]; 4] = [
            &[10, 0, 0, 1],
            &[10, 0, 0, 2],
            &[10, 0, 0, 3],
            &[10, 0, 0, 4],
        ];
        let fifth: &[u8] = &[10, 0, 0, 5];

        let ports = [
            port(14, &[&of_one.map(|it| (it, 3))[..], &[(fifth, 2)]].concat()),
            port(2, &[(fifth, 2)]),
        ];
        add(&mut shown, &ports);

        let named = [
            ("10.0.0.5", 4),
            ("10.0.0.1", 3),
            ("10.0.0.2", 3),
            ("10.0.0.3", 3),
        ];
        assert_eq!(peers(&shown), named);
    }
}

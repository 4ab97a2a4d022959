//! Connections that the pods of an intercept had before.

use std::{cmp::Reverse, collections::BTreeMap};

use tp_proto::local::{Intercept, InterceptPod};

/// Peers that are named.
const MAX_PEERS: usize = 4;

/// A sentence about those of all pods, and what ends them; `None` if there were none.
pub(super) fn earlier_of_all(intercept: &Intercept) -> Option<String> {
    let pods = &intercept.pods;
    let ended: u64 = pods.iter().map(|pod| pod.earlier_ended).sum();
    let left: u64 = pods.iter().map(|pod| pod.earlier).sum();
    let ended = (ended > 0).then(|| match ended {
        1 => "1 connection opened earlier was ended".to_owned(),
        ended => format!("{ended} connections opened earlier were ended"),
    });
    let left = (left > 0).then(|| {
        let (connections, go, them) = match left {
            1 => ("connection", "goes", "it"),
            _ => ("connections", "go", "them"),
        };
        let to = if pods.len() > 1 { "pods" } else { "pod" };
        // It has done what it can.
        let hint = match intercept.take_open {
            true => String::new(),
            false => format!(
                ": `tp leave {}`, then `tp intercept … --take-open` ends {them}",
                intercept.name
            ),
        };
        format!(
            "{left} {connections} opened earlier still {go} to the {to}{}{hint}",
            from(pods, left)
        )
    });
    let said: Vec<String> = ended.into_iter().chain(left).collect();

    (!said.is_empty()).then(|| said.join("; "))
}

/// `, from 10.244.1.7 (2) and others`
fn from(pods: &[InterceptPod], all: u64) -> String {
    let mut by_address: BTreeMap<&str, u64> = BTreeMap::new();
    for peer in pods.iter().flat_map(|pod| &pod.earlier_from) {
        *by_address.entry(&peer.address).or_default() += peer.count;
    }
    let mut peers: Vec<(&str, u64)> = by_address.into_iter().collect();
    peers.sort_by_key(|(_, count)| Reverse(*count));
    peers.truncate(MAX_PEERS);
    if peers.is_empty() {
        return String::new();
    }
    let named: u64 = peers.iter().map(|(_, count)| count).sum();
    let others = if named < all { " and others" } else { "" };
    let peers = peers.iter().map(|(address, count)| match count {
        1 => (*address).to_owned(),
        count => format!("{address} ({count})"),
    });

    format!(", from {}{others}", peers.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use tp_proto::local::EarlierPeer;

    use super::*;

    fn pod(earlier: u64, from: &[(&str, u64)], earlier_ended: u64) -> InterceptPod {
        let peers = from.iter().map(|(address, count)| EarlierPeer {
            address: (*address).into(),
            count: *count,
        });

        InterceptPod {
            earlier,
            earlier_from: peers.collect(),
            earlier_ended,
            ..InterceptPod::default()
        }
    }

    fn said(pods: &[InterceptPod], take_open: bool) -> Option<String> {
        earlier_of_all(&Intercept {
            name: "web".into(),
            pods: pods.to_vec(),
            take_open,
            ..Intercept::default()
        })
    }

    #[test]
    fn what_still_goes_to_the_pods_is_said_with_from_where_and_what_ends_it() {
        let one = pod(1, &[("10.244.1.7", 1)], 0);
        assert_eq!(
            said(from_ref(&one), false).unwrap(),
            "1 connection opened earlier still goes to the pod, from 10.244.1.7: `tp leave web`, then \
             `tp intercept … --take-open` ends it"
        );

        let other = pod(9, &[("10.244.1.8", 5), ("10.244.1.7", 2)], 0);
        assert_eq!(
            said(&[one.clone(), other], false).unwrap(),
            "10 connections opened earlier still go to the pods, from 10.244.1.8 (5), 10.244.1.7 (3) \
             and others: `tp leave web`, then `tp intercept … --take-open` ends them"
        );

        assert_eq!(
            said(from_ref(&one), true).unwrap(),
            "1 connection opened earlier still goes to the pod, from 10.244.1.7"
        );
    }

    #[test]
    fn what_was_ended_is_said() {
        assert_eq!(
            said(&[pod(0, &[], 2), pod(0, &[], 1)], true).unwrap(),
            "3 connections opened earlier were ended"
        );
        assert_eq!(said(&[pod(0, &[], 0)], false), None);
    }
}

//! Connections to redirected ports that the container has: no lookup concerns them any more, so they go
//! on to it until one of their ends ends them, or the agent asks for it.

use std::{cmp::Reverse, collections::BTreeMap, io, net::IpAddr};

use rustix::{io::Errno, thread::CapabilitySet};
use tp_agent_api::{EarlierConnections, EarlierPeer, MAX_EARLIER_PEERS};

use crate::{
    diag::{Diag, Established},
    netns::{ACCEPTED_MARK, PodNetns},
    pod_error::PodError,
};

/// Peers of a port that are told apart; the connections of others count without a name.
const MAX_PEERS: usize = 4096;
/// Connections that one request ends: the agent's other requests wait meanwhile.
const MAX_ENDED: usize = 2048;

/// What the program of a redirect goes by.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedirectRules {
    /// Each with whether it is left to the container for connections from the node.
    pub(crate) ports: BTreeMap<u16, bool>,
    pub(crate) nodes: Vec<IpAddr>,
}

pub(crate) struct EarlierLook {
    /// One for each port.
    pub(crate) ports: Vec<EarlierConnections>,
    /// Why some were not ended.
    pub(crate) obstacle: Option<String>,
    /// Another look may end more.
    pub(crate) has_more: bool,
}

/// Counts the connections of each port, once those to the ports `end` are ended.
pub(crate) fn look(
    netns: &PodNetns,
    rules: &RedirectRules,
    end: &[u16],
) -> Result<EarlierLook, PodError> {
    let own = netns.addresses()?;
    let is_earlier = |it: &Established| is_earlier(it, rules, &own);
    let what = "look at the connections of the pod";
    netns.run(what, CapabilitySet::NET_ADMIN, || {
        let diag = Diag::open()?;
        let (mut found, mut has_more) = (Vec::new(), false);
        let end: Vec<u16> = end
            .iter()
            .copied()
            .filter(|port| rules.ports.contains_key(port))
            .collect();
        diag.list(&end, |it| {
            if is_earlier(&it) {
                match found.len() < MAX_ENDED {
                    true => found.push(it),
                    false => has_more = true,
                }
            }
        })?;
        let mut ended: BTreeMap<u16, u64> = BTreeMap::new();
        let mut obstacle = None;
        for connection in &found {
            match diag.destroy(connection) {
                Ok(was_there) => *ended.entry(connection.port).or_default() += u64::from(was_there),
                Err(error) => {
                    obstacle = Some(said(&error));
                    has_more = !is_lasting(&error);
                    break;
                }
            }
        }
        let mut peers: BTreeMap<u16, Counted> = BTreeMap::new();
        let all: Vec<u16> = rules.ports.keys().copied().collect();
        diag.list(&all, |it| {
            if is_earlier(&it) {
                peers.entry(it.port).or_default().add(it.peer);
            }
        })?;
        let ports = all.into_iter().map(|port| EarlierConnections {
            ended: ended.get(&port).copied().unwrap_or_default(),
            ..peers.remove(&port).unwrap_or_default().into_reply(port)
        });

        Ok(EarlierLook {
            ports: ports.collect(),
            obstacle,
            has_more,
        })
    })
}

/// Whether the container has a connection that would be redirected if it were new.
fn is_earlier(connection: &Established, rules: &RedirectRules, own: &[IpAddr]) -> bool {
    let Established {
        port, peer, mark, ..
    } = connection;
    let is_exempt = peer.is_loopback() || own.contains(peer);
    let is_spared = rules.ports.get(port) == Some(&true) && rules.nodes.contains(peer);

    *mark != ACCEPTED_MARK && !is_exempt && !is_spared
}

/// Whether it is in vain to ask again.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::PERM)
    )
}

fn said(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::OPNOTSUPP) => "the kernel of the node cannot end the connections of others \
                                   (CONFIG_INET_DIAG_DESTROY): restart the clients, or the pod"
            .to_owned(),
        _ => format!("the kernel of the node does not end them: {error}"),
    }
}

/// The connections of a port.
#[derive(Default)]
struct Counted {
    count: u64,
    by_peer: BTreeMap<IpAddr, u64>,
}

impl Counted {
    fn add(&mut self, peer: IpAddr) {
        self.count += 1;
        if self.by_peer.len() < MAX_PEERS || self.by_peer.contains_key(&peer) {
            *self.by_peer.entry(peer).or_default() += 1;
        }
    }

    fn into_reply(self, port: u16) -> EarlierConnections {
        let peers = self.by_peer.into_iter();
        let mut peers: Vec<_> = peers
            .map(|(address, count)| EarlierPeer { address, count })
            .collect();
        peers.sort_by_key(|peer| (Reverse(peer.count), peer.address));
        peers.truncate(MAX_EARLIER_PEERS);

        EarlierConnections {
            port,
            count: self.count,
            peers,
            ended: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_with_the_most_connections_are_named() {
        let mut counted = Counted::default();
        for (last, count) in [(1, 1), (2, 3), (3, 1), (4, 2), (5, 1)] {
            (0..count).for_each(|_| counted.add(IpAddr::from([10, 0, 0, last])));
        }

        let reply = counted.into_reply(80);

        assert_eq!((reply.port, reply.count), (80, 8));
        let named = reply.peers.iter();
        let named: Vec<String> = named
            .map(|peer| format!("{} {}", peer.address, peer.count))
            .collect();
        assert_eq!(
            named,
            ["10.0.0.2 3", "10.0.0.4 2", "10.0.0.1 1", "10.0.0.3 1"]
        );
    }

    #[test]
    fn more_peers_than_are_told_apart_are_counted() {
        let mut counted = Counted::default();
        for n in 0..(MAX_PEERS as u32 + 10) {
            counted.add(IpAddr::from(n.to_be_bytes()));
        }

        assert_eq!(counted.by_peer.len(), MAX_PEERS);
        assert_eq!(counted.count, MAX_PEERS as u64 + 10);
    }
}

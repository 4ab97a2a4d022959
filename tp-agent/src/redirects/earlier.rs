//! Connections that the containers of a redirected pod had before: when they are looked at, when they
//! are ended, and what is reported of them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use tp_agent_api::{EarlierConnections, LeaseState};
use tp_proto::agent::{self, EarlierPeer};

use crate::plan::{PodPlan, PortPlan};

/// Between looks, while there are some, or after one that failed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Of the ports of one pod.
#[derive(Default)]
pub(super) struct EarlierLooks {
    ports: BTreeMap<u16, PortLook>,
    is_under_way: bool,
    /// Why some were not ended.
    obstacle: Option<String>,
}

#[derive(Default)]
struct PortLook {
    intercept: String,
    /// The container does not get what is new.
    is_redirected: bool,
    ends: bool,
    seen: EarlierConnections,
    looked: Option<Instant>,
    /// They were ended, which is done once.
    is_ended: bool,
    ended: u64,
}

impl EarlierLooks {
    /// Takes the ports over that the plan has. `state` is what each does.
    pub(super) fn follow(&mut self, plan: &PodPlan, state: impl Fn(u16, &PortPlan) -> LeaseState) {
        self.ports.retain(|port, _| plan.ports.contains_key(port));
        for (number, planned) in &plan.ports {
            let port = self.ports.entry(*number).or_default();
            if port.intercept != planned.intercept {
                *port = PortLook {
                    intercept: planned.intercept.clone(),
                    ends: planned.takes_open,
                    ..PortLook::default()
                };
            }
            let is_redirected = state(*number, planned) != LeaseState::Container;
            if is_redirected && !port.is_redirected {
                // The container may have got others meanwhile.
                port.looked = None;
            }
            port.is_redirected = is_redirected;
        }
    }

    /// Begins a look, if it is time: returns the ports whose connections are to be ended, of those of
    /// which a connection `has_arrived`.
    pub(super) fn begin(&mut self, has_arrived: impl Fn(u16) -> bool) -> Option<Vec<u16>> {
        let end = self.ports.iter().filter(|(number, port)| {
            // Where nothing was seen to arrive, they would be ended for nothing.
            port.is_redirected && port.ends && !port.is_ended && has_arrived(**number)
        });
        let end: Vec<u16> = end.map(|(number, _)| *number).collect();
        let is_due = !end.is_empty() || self.ports.values().any(PortLook::is_due);
        let begins = is_due && !self.is_under_way;
        self.is_under_way |= begins;

        begins.then_some(end)
    }

    /// A look has ended, with what was seen, and why not all of `end` were ended.
    pub(super) fn end(
        &mut self,
        end: &[u16],
        seen: Vec<EarlierConnections>,
        obstacle: Option<String>,
    ) {
        self.is_under_way = false;
        let now = Instant::now();
        // A port may have come meanwhile.
        let is_of = |number: u16| seen.is_empty() || seen.iter().any(|it| it.port == number);
        for (number, port) in &mut self.ports {
            if is_of(*number) {
                port.looked = Some(now);
            }
        }
        for seen in seen {
            if let Some(port) = self.ports.get_mut(&seen.port) {
                port.ended += seen.ended;
                port.seen = seen;
            }
        }
        for port in end {
            if let Some(port) = self.ports.get_mut(port) {
                port.is_ended = true;
            }
        }
        if !end.is_empty() {
            self.obstacle = obstacle;
        }
    }

    /// Returns whether a look is to be waited for before anything is reported of the port, of which a
    /// connection `has_arrived` or not.
    pub(super) fn is_pending(&self, number: u16, has_arrived: bool) -> bool {
        let port = self.ports.get(&number).filter(|port| port.is_redirected);

        port.is_some_and(|port| {
            let will_end = port.ends && !port.is_ended && has_arrived;
            port.looked.is_none() || will_end
        })
    }

    /// Adds what is known of the port.
    pub(super) fn tell(&self, number: u16, counters: agent::PortCounters) -> agent::PortCounters {
        let port = self.ports.get(&number).filter(|port| port.is_redirected);
        let Some(PortLook { seen, ended, .. }) = port else {
            return counters;
        };
        let peers = seen.peers.iter().map(|peer| EarlierPeer {
            address: match peer.address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            }
            .into(),
            count: peer.count,
        });

        agent::PortCounters {
            earlier: seen.count,
            earlier_from: peers.collect(),
            earlier_ended: *ended,
            ..counters
        }
    }

    /// Why connections of one of these ports were not ended that should have been, as a sentence.
    pub(super) fn obstacle(&self, mut ports: impl Iterator<Item = u16>) -> Option<String> {
        let is_asked = |port: u16| self.ports.get(&port).is_some_and(|port| port.is_ended);
        let obstacle = self.obstacle.as_ref().filter(|_| ports.any(is_asked))?;

        Some(format!(
            "connections opened earlier were not ended: {obstacle}"
        ))
    }
}

impl PortLook {
    fn is_due(&self) -> bool {
        let Some(looked) = self.looked else {
            return self.is_redirected;
        };

        self.is_redirected && self.seen.count > 0 && looked.elapsed() >= LOOK_INTERVAL
    }
}

#[cfg(test)]
mod tests;

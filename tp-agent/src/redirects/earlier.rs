//! Connections that the containers of a redirected pod had before: when they are looked at, when they
//! are ended, and what is reported of them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tp_agent_api::{EarlierConnections, LeaseState};
use tp_proto::agent::{self, EarlierPeer};

use super::taken::{AllTaken, TakenOpen};
use crate::plan::{PodPlan, PortPlan};

/// Between looks, while there are some, or after one that failed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Requests to end those of a port, of which each ends some.
const MAX_ROUNDS: u32 = 64;
/// Among them, those that something was in the way of.
const MAX_FAILURES: u32 = 3;
/// Why an agent ends no connections: one before it may have done it, and the pod served since.
const STARTED_LATER: &str = "the agent of the node started after the intercept: to end them, leave it and \
                             intercept again";

/// Of the ports of one pod.
#[derive(Default)]
pub(super) struct EarlierLooks {
    /// UID.
    pod: String,
    taken: Arc<AllTaken>,
    ports: BTreeMap<u16, PortLook>,
    is_under_way: bool,
}

#[derive(Default)]
struct PortLook {
    intercept: String,
    /// The container does not get what is new.
    is_redirected: bool,
    ends: bool,
    seen: EarlierConnections,
    looked: Option<Instant>,
    /// Why nothing is known since.
    failure: Option<String>,
    rounds: u32,
    failures: u32,
    taken: TakenOpen,
}

/// What a look showed, and did.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) seen: Vec<EarlierConnections>,
    /// Why not all were ended.
    pub(super) obstacle: Option<String>,
    /// Asked again, it may end more.
    pub(super) has_more: bool,
}

impl EarlierLooks {
    pub(super) fn new(pod: String, taken: Arc<AllTaken>) -> Self {
        Self {
            pod,
            taken,
            ..Self::default()
        }
    }

    /// Takes the ports over that the plan has. `state` is what each does.
    pub(super) fn follow(&mut self, plan: &PodPlan, state: impl Fn(u16, &PortPlan) -> LeaseState) {
        self.ports.retain(|port, _| plan.ports.contains_key(port));
        for (number, planned) in &plan.ports {
            let port = self.ports.entry(*number).or_default();
            if port.intercept != planned.intercept {
                let is_ours = self.taken.is_ours(planned.met);
                let unknown = planned.takes_open && !is_ours;
                let taken = self.taken.of(&planned.intercept, &self.pod, *number);
                *port = PortLook {
                    intercept: planned.intercept.clone(),
                    ends: planned.takes_open && is_ours,
                    taken: taken.unwrap_or_else(|| TakenOpen {
                        is_over: unknown,
                        obstacle: unknown.then(|| STARTED_LATER.to_owned()),
                        ..TakenOpen::default()
                    }),
                    ..PortLook::default()
                };
            }
            let is_redirected = state(*number, planned) != LeaseState::Container;
            if is_redirected && !port.is_redirected {
                // The container may have got others meanwhile.
                (port.looked, port.failure) = (None, None);
            }
            port.is_redirected = is_redirected;
        }
    }

    /// Begins a look, if it is time: returns the ports whose connections are to be ended, of those of
    /// which a connection `has_arrived`.
    pub(super) fn begin(&mut self, has_arrived: impl Fn(u16) -> bool) -> Option<Vec<u16>> {
        let end = self
            .ports
            .iter()
            .filter(|(number, port)| port.will_end(has_arrived(**number)) && !port.is_paused());
        let end: Vec<u16> = end.map(|(number, _)| *number).collect();
        let is_due = !end.is_empty() || self.ports.values().any(PortLook::is_due);
        let begins = is_due && !self.is_under_way;
        self.is_under_way |= begins;

        begins.then_some(end)
    }

    /// A look has ended that was to end connections of the ports `end`.
    pub(super) fn end(&mut self, end: &[u16], looked: Looked) {
        let Looked {
            seen,
            obstacle,
            has_more,
        } = looked;
        self.is_under_way = false;
        let now = Instant::now();
        for seen in seen {
            // A port may have come meanwhile.
            if let Some(port) = self.ports.get_mut(&seen.port) {
                (port.looked, port.failure) = (Some(now), None);
                port.taken.ended += seen.ended;
                port.seen = seen;
            }
        }
        for number in end {
            if let Some(port) = self.ports.get_mut(number) {
                port.has_tried(obstacle.clone(), has_more);
                self.taken
                    .set(&port.intercept, &self.pod, *number, port.taken.clone());
            }
        }
    }

    /// Nothing came of a look.
    pub(super) fn fail(&mut self, end: &[u16], reason: String) {
        self.is_under_way = false;
        for (number, port) in &mut self.ports {
            port.looked = Some(Instant::now());
            port.failure = Some(reason.clone());
            if end.contains(number) {
                port.has_tried(Some(reason.clone()), true);
            }
        }
    }

    /// Returns whether a look is to be waited for before anything is reported of the port, of which a
    /// connection `has_arrived` or not.
    pub(super) fn is_pending(&self, number: u16, has_arrived: bool) -> bool {
        let port = self.ports.get(&number).filter(|port| port.is_redirected);

        port.is_some_and(|port| {
            port.looked.is_none() || (port.will_end(has_arrived) && !port.is_paused())
        })
    }

    /// Adds what is known of the port.
    pub(super) fn tell(&self, number: u16, counters: agent::PortCounters) -> agent::PortCounters {
        let port = self.ports.get(&number).filter(|port| port.is_redirected);
        let Some(PortLook { seen, taken, .. }) = port else {
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
            earlier_ended: taken.ended,
            ..counters
        }
    }

    /// Why connections of one of these ports were not ended that should have been, or are not known, as a
    /// sentence.
    pub(super) fn obstacle(&self, ports: impl Iterator<Item = u16>) -> Option<String> {
        let ports = ports.filter_map(|port| self.ports.get(&port));
        let mut said = ports.filter_map(|port| match (&port.taken.obstacle, &port.failure) {
            (Some(obstacle), _) => Some(("were not ended", obstacle)),
            (None, Some(failure)) if port.is_redirected => Some(("are not known", failure)),
            (None, _) => None,
        });
        let (what, why) = said.next()?;

        Some(format!("connections opened earlier {what}: {why}"))
    }
}

impl PortLook {
    fn is_due(&self) -> bool {
        let Some(looked) = self.looked else {
            return self.is_redirected;
        };

        let has_some = self.seen.count > 0 || self.failure.is_some();

        self.is_redirected && has_some && looked.elapsed() >= LOOK_INTERVAL
    }

    /// Where nothing was seen to arrive, they would be ended for nothing.
    fn will_end(&self, has_arrived: bool) -> bool {
        self.is_redirected && self.ends && !self.taken.is_over && has_arrived
    }

    /// After a look that failed, or that something was in the way of.
    fn is_paused(&self) -> bool {
        let was_hindered = self.failure.is_some() || self.taken.obstacle.is_some();

        was_hindered && self.looked.is_some_and(|it| it.elapsed() < LOOK_INTERVAL)
    }

    fn has_tried(&mut self, obstacle: Option<String>, has_more: bool) {
        self.rounds += 1;
        self.failures += u32::from(obstacle.is_some());
        let is_enough = self.rounds >= MAX_ROUNDS || self.failures >= MAX_FAILURES;
        self.taken.is_over = !has_more || is_enough;
        self.taken.obstacle = obstacle;
    }
}

#[cfg(test)]
mod tests;

//! What is known of the ports of a redirected pod: proofs and counters, and what is reported of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tp_agent_api::{LeaseState, PortCounters};
use tp_proto::agent::{self, PodPhase, PodReport};

use super::verify::Proof;
use crate::plan::{PodPlan, PortPlan};

const UNSEEN: &str = "was not seen to take a connection from its node: a NetworkPolicy may forbid it, \
                      which does not concern others that may connect";
const BYPASSED: &str = "is redirected, but a connection to it went elsewhere: something in front of the \
                        pod takes its traffic, such as a service mesh";

/// After a test that proved nothing, or that the port is bypassed.
const RETEST_AFTER: Duration = Duration::from_secs(60);

/// The ports of one pod.
#[derive(Default)]
pub(super) struct Ports(BTreeMap<u16, Port>);

#[derive(Default)]
struct Port {
    intercept: String,
    proof: Option<Proof>,
    is_tested: bool,
    tested: Option<Instant>,
    last: Counted,
    /// When the Intercept got the port.
    base: Counted,
    /// CarriedConnections of our own.
    own: Counted,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    to_workstation: u64,
    to_container: u64,
    exempt: u64,
    refused: u64,
}

impl Ports {
    /// Takes the ports over that the plan has. A port of another Intercept is another one.
    pub(super) fn follow(&mut self, plan: &PodPlan) {
        self.0.retain(|port, _| plan.ports.contains_key(port));
        for (number, planned) in &plan.ports {
            let port = self.0.entry(*number).or_default();
            if port.intercept != planned.intercept {
                *port = Port {
                    intercept: planned.intercept.clone(),
                    last: port.last,
                    base: port.last,
                    ..Port::default()
                };
            }
            if port.proof == Some(Proof::Bypassed) && port.is_retested() {
                port.proof = None;
            }
        }
    }

    /// What a port does: what other things take is left to them, but for a test now and then.
    pub(super) fn state(&self, port: u16, planned: &PortPlan) -> LeaseState {
        match self.0.get(&port) {
            Some(port) if port.proof == Some(Proof::Bypassed) => LeaseState::Container,
            _ => planned.state,
        }
    }

    /// Begins a test of this port, if there is anything to prove.
    pub(super) fn begin_test(&mut self, port: u16, state: LeaseState) -> bool {
        let Some(port) = self.0.get_mut(&port) else {
            return false;
        };
        let is_due = match (state, port.proof) {
            (LeaseState::Redirect, None | Some(Proof::Refused)) => true,
            (LeaseState::Refuse, None) => true,
            (LeaseState::Redirect | LeaseState::Refuse, Some(Proof::Unseen)) => port.is_retested(),
            _ => false,
        };
        let begins = is_due && !port.is_tested;
        port.is_tested |= begins;

        begins
    }

    /// A test has ended; `holds` unless the port has changed meanwhile.
    pub(super) fn end_test(&mut self, port: u16, intercept: &str, proof: Proof, holds: bool) {
        let found = self.0.get_mut(&port);
        let Some(port) = found.filter(|it| it.intercept == intercept) else {
            return;
        };
        port.is_tested = false;
        port.tested = Some(Instant::now());
        match proof {
            Proof::Taken => port.own.to_workstation += 1,
            Proof::Refused => port.own.refused += 1,
            Proof::Bypassed | Proof::Unseen => {}
        }
        if holds {
            port.proof = Some(proof);
        }
    }

    pub(super) fn count(&mut self, counters: &[PortCounters]) {
        for counters in counters {
            if let Some(port) = self.0.get_mut(&counters.port) {
                port.last = Counted {
                    to_workstation: counters.redirected,
                    to_container: counters.lease_over + counters.container,
                    exempt: counters.exempt + counters.probes,
                    refused: counters.refused,
                };
            }
        }
    }

    /// One report for each Intercept with all its ports tested; `before` stands meanwhile.
    pub(super) fn reports(
        &self,
        uid: &str,
        plan: &PodPlan,
        before: &[PodReport],
    ) -> Vec<PodReport> {
        let mut by_intercept: BTreeMap<&str, Vec<(u16, &Port)>> = BTreeMap::new();
        for (number, port) in &self.0 {
            let ports = by_intercept.entry(&port.intercept).or_default();
            ports.push((*number, port));
        }
        let reports = by_intercept.into_iter().filter_map(|(intercept, ports)| {
            let is_pending = ports.iter().any(|(number, port)| {
                let state = plan.ports.get(number).map(|planned| planned.state);
                port.proof.is_none() && state != Some(LeaseState::Container)
            });
            if is_pending {
                return before.iter().find(|it| it.intercept == intercept).cloned();
            }
            let (phase, reason) = judged(&ports);
            Some(PodReport {
                intercept: intercept.to_owned(),
                pod: uid.to_owned(),
                name: plan.name.clone(),
                phase: phase.into(),
                reason,
                ports: ports
                    .iter()
                    .map(|(number, port)| port.counters(*number))
                    .collect(),
            })
        });

        reports.collect()
    }
}

fn judged(ports: &[(u16, &Port)]) -> (PodPhase, String) {
    let with = |proof| {
        let found = ports.iter().filter(|(_, port)| port.proof == Some(proof));
        found
            .map(|(number, _)| number.to_string())
            .collect::<Vec<_>>()
    };
    let (bypassed, unseen) = (with(Proof::Bypassed), with(Proof::Unseen));
    if !bypassed.is_empty() {
        let reason = format!("port {} {BYPASSED}", bypassed.join(", "));
        return (PodPhase::Refused, reason);
    }
    let reason = match unseen.is_empty() {
        true => String::new(),
        false => format!("port {} {UNSEEN}", unseen.join(", ")),
    };

    (PodPhase::Redirected, reason)
}

impl Port {
    fn is_retested(&self) -> bool {
        self.tested
            .is_none_or(|tested| tested.elapsed() >= RETEST_AFTER)
    }

    fn counters(&self, port: u16) -> agent::PortCounters {
        let Self {
            last, base, own, ..
        } = self;
        let since = |last: u64, base: u64, own: u64| last.saturating_sub(base).saturating_sub(own);

        agent::PortCounters {
            port: port.into(),
            to_workstation: since(last.to_workstation, base.to_workstation, own.to_workstation),
            to_container: since(last.to_container, base.to_container, own.to_container),
            exempt: since(last.exempt, base.exempt, own.exempt),
            refused: since(last.refused, base.refused, own.refused),
        }
    }
}

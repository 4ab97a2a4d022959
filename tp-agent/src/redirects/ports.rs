//! What is known of the ports of a redirected pod: proofs and counters, and what is reported of them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tp_agent_api::{LeaseState, PortCounters};
use tp_proto::agent::{self, PodPhase, PodReport};

use super::{earlier::EarlierLooks, verify::Proof};
use crate::{
    plan::{PodPlan, PortPlan},
    probes::ProbeCounts,
};

const UNSEEN: &str = "was not seen to take a connection from its node: a NetworkPolicy may forbid it, \
                      which does not concern others that may connect";
const BYPASSED: &str = "is redirected, but a connection to it went elsewhere: something in front of the \
                        pod takes its traffic, such as a service mesh";

const PROBED: &str = "is left to the container for connections from its node, whose probes cannot be \
                      told from others";

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
    /// Connections of our own.
    own: Counted,
    /// Of all Intercepts, as `last`.
    probes: Arc<ProbeCounts>,
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
                    probes: Arc::clone(&port.probes),
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

    /// Returns whether a connection was seen to arrive.
    pub(super) fn has_taken(&self, port: u16) -> bool {
        self.0.get(&port).is_some_and(|port| {
            let arrived = port.last.to_workstation > port.base.to_workstation;
            arrived || port.own.to_workstation > 0
        })
    }

    pub(super) fn probes(&self, port: u16) -> Arc<ProbeCounts> {
        self.0
            .get(&port)
            .map(|it| Arc::clone(&it.probes))
            .unwrap_or_default()
    }

    pub(super) fn count(&mut self, counters: &[PortCounters]) {
        for counters in counters {
            if let Some(port) = self.0.get_mut(&counters.port) {
                let redirected = counters.redirected.saturating_sub(port.probes.get());
                port.last = Counted {
                    // A connection may be held that was not counted yet.
                    to_workstation: redirected.max(port.last.to_workstation),
                    to_container: counters.lease_over + counters.container + counters.elsewhere,
                    // Probes that were passed through came to the container from the pod itself.
                    exempt: counters.exempt + counters.probes,
                    refused: counters.refused,
                };
            }
        }
    }

    /// One report for each Intercept with all its ports tested and looked at; `before` stands meanwhile.
    pub(super) fn reports(
        &self,
        uid: &str,
        plan: &PodPlan,
        looks: &EarlierLooks,
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
                let is_untested = port.proof.is_none() && state != Some(LeaseState::Container);
                is_untested || looks.is_pending(*number, self.has_taken(*number))
            });
            if is_pending {
                return before.iter().find(|it| it.intercept == intercept).cloned();
            }
            let (phase, mut reason) = judged(&ports, plan);
            if let Some(obstacle) = looks.obstacle(ports.iter().map(|(number, _)| *number)) {
                let separator = if reason.is_empty() { "" } else { "; " };
                reason.push_str(&format!("{separator}{obstacle}"));
            }
            Some(PodReport {
                intercept: intercept.to_owned(),
                pod: uid.to_owned(),
                name: plan.name.clone(),
                phase: phase.into(),
                reason,
                ports: ports
                    .iter()
                    .map(|(number, port)| looks.tell(*number, port.counters(*number)))
                    .collect(),
            })
        });

        reports.collect()
    }
}

fn judged(ports: &[(u16, &Port)], plan: &PodPlan) -> (PodPhase, String) {
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
    let probed = ports.iter().filter(|(number, _)| {
        let planned = plan.ports.get(number);
        planned.is_some_and(|planned| planned.probed)
    });
    let probed: Vec<String> = probed.map(|(number, _)| number.to_string()).collect();
    let said = [(unseen, UNSEEN), (probed, PROBED)].into_iter();
    let reasons = said.filter(|(ports, _)| !ports.is_empty());
    let reasons: Vec<String> = reasons
        .map(|(ports, reason)| format!("port {} {reason}", ports.join(", ")))
        .collect();

    (PodPhase::Redirected, reasons.join("; "))
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
            ..agent::PortCounters::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ports: &[(u16, &str, LeaseState)]) -> PodPlan {
        PodPlan::of_ports(ports.iter().copied(), false)
    }

    /// Of which nothing is waited for.
    fn looks() -> EarlierLooks {
        EarlierLooks::default()
    }

    fn counted(port: u16, redirected: u64) -> PortCounters {
        PortCounters {
            port,
            redirected,
            ..PortCounters::default()
        }
    }

    #[test]
    fn an_intercept_is_reported_when_all_its_ports_are_proven() {
        let plan = plan(&[
            (80, "i", LeaseState::Redirect),
            (81, "i", LeaseState::Refuse),
            (82, "j", LeaseState::Container),
        ]);
        let mut ports = Ports::default();
        ports.follow(&plan);
        let first = ports.reports("1", &plan, &looks(), &[]);
        assert_eq!(
            first.len(),
            1,
            "nothing can be proven of what the container serves"
        );
        assert_eq!(first[0].intercept, "j");

        assert!(ports.begin_test(80, LeaseState::Redirect));
        assert!(
            !ports.begin_test(80, LeaseState::Redirect),
            "once at a time"
        );
        ports.end_test(80, "i", Proof::Taken, true);
        assert!(ports.begin_test(81, LeaseState::Refuse));
        ports.end_test(81, "i", Proof::Refused, true);
        let reports = ports.reports("1", &plan, &looks(), &first);

        assert_eq!(reports.len(), 2);
        assert_eq!(reports[0].phase(), PodPhase::Redirected);
        assert!(reports[0].reason.is_empty());
        // Once it listens there is more to prove.
        assert!(ports.begin_test(81, LeaseState::Redirect));
        assert!(!ports.begin_test(80, LeaseState::Redirect));
    }

    #[test]
    fn what_is_left_to_the_container_for_probes_is_said_and_no_obstacle() {
        let mut plan = plan(&[
            (80, "i", LeaseState::Redirect),
            (81, "i", LeaseState::Redirect),
        ]);
        plan.ports.get_mut(&81).unwrap().probed = true;
        let mut ports = Ports::default();
        ports.follow(&plan);
        ports.end_test(80, "i", Proof::Unseen, true);
        ports.end_test(81, "i", Proof::Taken, true);
        // One connection of two is a probe.
        ports.probes(80).count_one();
        ports.count(&[counted(80, 2)]);

        let report = &ports.reports("1", &plan, &looks(), &[])[0];

        assert_eq!(report.phase(), PodPhase::Redirected);
        assert_eq!(report.reason, format!("port 80 {UNSEEN}; port 81 {PROBED}"));
        assert_eq!(report.ports[0].to_workstation, 1);
    }

    #[test]
    fn a_proof_of_another_state_or_intercept_is_none() {
        let plan = plan(&[(80, "i", LeaseState::Redirect)]);
        let mut ports = Ports::default();
        ports.follow(&plan);

        assert!(ports.begin_test(80, LeaseState::Redirect));
        ports.end_test(80, "i", Proof::Bypassed, false);
        assert!(ports.begin_test(80, LeaseState::Redirect));
        ports.end_test(80, "j", Proof::Bypassed, true);
        let planned = &plan.ports[&80];
        assert_eq!(ports.state(80, planned), LeaseState::Redirect);
        ports.end_test(80, "i", Proof::Bypassed, true);
        assert_eq!(ports.state(80, planned), LeaseState::Container);
        assert_eq!(
            ports.reports("1", &plan, &looks(), &[])[0].phase(),
            PodPhase::Refused
        );
    }

    #[test]
    fn connections_count_from_when_the_intercept_got_the_port() {
        let first = plan(&[(80, "i", LeaseState::Redirect)]);
        let mut ports = Ports::default();
        ports.follow(&first);
        ports.end_test(80, "i", Proof::Taken, true);
        ports.count(&[counted(80, 5), counted(99, 7)]);
        assert_eq!(
            ports.reports("1", &first, &looks(), &[])[0].ports[0].to_workstation,
            4
        );

        let second = plan(&[(80, "j", LeaseState::Redirect)]);
        ports.follow(&second);
        ports.end_test(80, "j", Proof::Taken, true);
        ports.count(&[counted(80, 8)]);

        assert_eq!(
            ports.reports("1", &second, &looks(), &[])[0].ports[0].to_workstation,
            2
        );
    }
}

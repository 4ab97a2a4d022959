//! What sessions are told of their Intercepts.

use std::{sync::Arc, time::Duration};

use tp_core::intercept::holders::Standing;
use tp_process::sync::lock;
use tp_proto::{
    agent::{self, PodPhase},
    tunnel::{
        EarlierPeer, HeldPort, InterceptState, InterceptStates, InterceptedPod, PodPortCounters,
    },
};

use super::{InterceptRecord, Intercepts, reports::NodeReport, serving::Served};

/// A watch may be so late. Until then the session waits.
const KNOWN_AFTER: Duration = Duration::from_secs(10);

impl Intercepts {
    /// Of every Intercept that the session announced, but for those that the API server may have told
    /// the session of and not yet this replica.
    pub(crate) fn states(&self, served: &Served) -> InterceptStates {
        let standings = self.standings();
        let announced = served.announced();
        let intercepts = announced.keys().filter_map(|uid| {
            let record = self
                .record(uid)
                .filter(|record| record.session == *served.session());
            if let (Some(record), Some(standing)) = (record, standings.get(uid)) {
                let mut state = self.state(&record, standing);
                if state.refusal.is_empty() {
                    self.add_leading(&mut state, &record, served);
                }
                return Some(state);
            }
            let ended = lock(&self.ended).why(uid);
            if ended.is_none() && served.announced_for(uid) < KNOWN_AFTER {
                return None;
            }
            let reason = "the Intercept does not exist, or is not this session's";

            Some(InterceptState {
                ended: ended.unwrap_or_default(),
                ..refused(uid, reason)
            })
        });

        InterceptStates {
            intercepts: intercepts.collect(),
        }
    }

    fn state(&self, record: &Arc<InterceptRecord>, standing: &Standing) -> InterceptState {
        let uid = &record.uid;
        let held = match standing {
            Standing::Orphan if !self.sessions.is_covered(record.created) => {
                let reason = "it is older than the admission policy: end it and make it anew";
                return refused(uid, reason);
            }
            Standing::Orphan => return refused(uid, "its Session is not valid any more"),
            Standing::Away => return refused(uid, "its workstation was away for too long"),
            Standing::Holds { others } => others.iter(),
        };
        if let Some(reason) = self.denial(record) {
            return refused(uid, &reason);
        }
        let held = held.map(|(port, holder)| {
            let holder = self.record(holder);
            HeldPort {
                port: u32::from(*port),
                user: holder
                    .as_ref()
                    .map_or_else(String::new, |it| it.user.name().into()),
                own: holder
                    .as_ref()
                    .is_some_and(|it| it.user.is_same_person(&record.user)),
                since: holder.map_or_else(String::new, |it| it.created.to_string()),
            }
        });
        let pods = self.reports_of(record).into_iter().map(pod);

        InterceptState {
            uid: uid.clone(),
            held: held.collect(),
            pods: pods.collect(),
            ..InterceptState::default()
        }
    }
}

fn refused(uid: &str, reason: &str) -> InterceptState {
    InterceptState {
        uid: uid.into(),
        refusal: reason.into(),
        ..InterceptState::default()
    }
}

fn peer(peer: &agent::EarlierPeer) -> EarlierPeer {
    EarlierPeer {
        address: peer.address.clone(),
        count: peer.count,
    }
}

fn pod(report: NodeReport) -> InterceptedPod {
    let NodeReport { node, report } = report;
    let ports = report.ports.iter().map(|port| PodPortCounters {
        port: port.port,
        to_workstation: port.to_workstation,
        to_container: port.to_container,
        exempt: port.exempt,
        refused: port.refused,
        earlier: port.earlier,
        earlier_from: port.earlier_from.iter().map(peer).collect(),
        earlier_ended: port.earlier_ended,
    });

    InterceptedPod {
        node: node.to_string(),
        is_redirected: report.phase() == PodPhase::Redirected,
        ports: ports.collect(),
        name: report.name,
        reason: report.reason,
    }
}

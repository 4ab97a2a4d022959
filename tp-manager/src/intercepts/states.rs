//! What sessions are told of their Intercepts.

use std::sync::Arc;

use tp_core::intercept::holders::Standing;
use tp_process::sync::lock;
use tp_proto::{
    agent::PodPhase,
    tunnel::{HeldPort, InterceptState, InterceptStates, InterceptedPod, PodPortCounters},
};

use super::{InterceptRecord, Intercepts, NodeReport, serving::Served};
use crate::model::Model;

impl Intercepts {
    /// Of every Intercept that the session announced.
    pub(crate) fn states(&self, served: &Served, model: &Model) -> InterceptStates {
        let standings = self.standings();
        let announced = served.announced();
        let intercepts = announced.keys().map(|uid| {
            let record = self
                .record(uid)
                .filter(|record| record.session == *served.session());
            match (record, standings.get(uid)) {
                (Some(record), Some(standing)) => {
                    let mut state = self.state(&record, standing);
                    if state.refusal.is_empty() {
                        self.add_leading(&mut state, &record, served, model);
                    }
                    state
                }
                _ => InterceptState {
                    ended: lock(&self.ended).why(uid).unwrap_or_default(),
                    ..refused(
                        uid,
                        "the Intercept does not exist, or is not this session's",
                    )
                },
            }
        });

        InterceptStates {
            intercepts: intercepts.collect(),
        }
    }

    fn state(&self, record: &Arc<InterceptRecord>, standing: &Standing) -> InterceptState {
        let uid = &record.uid;
        let held = match standing {
            Standing::Orphan => return refused(uid, "its Session is not valid any more"),
            Standing::Away => return refused(uid, "its workstation was away for too long"),
            Standing::Holds { others } => others.iter(),
        };
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
        let pods = self.reports_of(uid).into_iter().map(pod);

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

fn pod(report: NodeReport) -> InterceptedPod {
    let NodeReport { node, report } = report;
    let ports = report.ports.iter().map(|port| PodPortCounters {
        port: port.port,
        to_workstation: port.to_workstation,
        to_container: port.to_container,
        exempt: port.exempt,
        refused: port.refused,
    });

    InterceptedPod {
        node: node.to_string(),
        is_redirected: report.phase() == PodPhase::Redirected,
        ports: ports.collect(),
        name: report.name,
        reason: report.reason,
    }
}

//! What agents report of the pods of their nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tp_process::sync::lock;
use tp_proto::agent::{PodPhase, PodReport};

use super::{InterceptRecord, Intercepts, bump};
use crate::model::{Model, ObjectName};

/// Reports of one agent.
const MAX_REPORTS: usize = 4096;

/// A report of an agent, with the node that it is of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NodeReport {
    pub(super) node: Arc<str>,
    pub(super) report: PodReport,
}

/// By agent, and by Intercept and pod.
pub(super) type Reports = BTreeMap<u64, BTreeMap<(String, String), NodeReport>>;

impl NodeReport {
    /// Returns whether the pod is one of the Intercept's namespace and of the agent's node. Of a pod
    /// that is not known, or has no address, an agent may say only why it is not redirected.
    fn is_credible(&self, record: &InterceptRecord, model: &Model) -> bool {
        let Self { node, report } = self;
        match pod_of(record, report, model) {
            Some(pod) => *pod.uid == *report.pod && *pod.node == **node,
            None => report.phase() == PodPhase::Refused,
        }
    }
}

/// What the model has under the name of the pod, in the namespace of the Intercept.
fn pod_of<'a>(
    record: &InterceptRecord,
    report: &PodReport,
    model: &'a Model,
) -> Option<&'a crate::model::Pod> {
    model.pod(&ObjectName::new(
        record.object.namespace.clone(),
        report.name.clone(),
    ))
}

impl Intercepts {
    /// Takes what an agent reports; returns how many reports are of pods of other nodes, which are
    /// dropped.
    pub(crate) fn report(&self, agent: u64, node: &Arc<str>, news: Vec<PodReport>) -> usize {
        let mut concerned = BTreeSet::new();
        let mut dropped = 0;
        let mut all = lock(&self.reports);
        let of_agent = all.entry(agent).or_default();
        for report in news {
            concerned.insert(report.intercept.clone());
            let key = (report.intercept.clone(), report.pod.clone());
            if report.phase() == PodPhase::Released {
                of_agent.remove(&key);
            } else if self.is_of_another_node(node, &report) {
                of_agent.remove(&key);
                dropped += 1;
            } else if of_agent.len() < MAX_REPORTS || of_agent.contains_key(&key) {
                let node = Arc::clone(node);
                of_agent.insert(key, NodeReport { node, report });
            }
        }
        drop(all);
        self.tell_reported(&concerned);

        dropped
    }

    /// A pod stays on its node. All else may be known to the agent before it is known here, and counts
    /// once it is.
    fn is_of_another_node(&self, node: &str, report: &PodReport) -> bool {
        let Some(record) = self.record(&report.intercept) else {
            return false;
        };
        let model = self.model.read();
        let pod = pod_of(&record, report, &model);

        pod.is_some_and(|pod| *pod.uid == *report.pod && *pod.node != *node)
    }

    /// The agent's connection has ended.
    pub(crate) fn forget_agent(&self, agent: u64) {
        let forgotten = lock(&self.reports).remove(&agent).unwrap_or_default();
        let concerned = forgotten.into_keys().map(|(intercept, _)| intercept);
        self.tell_reported(&concerned.collect());
    }

    /// Wakes the sessions of these Intercepts, and nobody else but the writer of status.
    fn tell_reported(&self, concerned: &BTreeSet<String>) {
        if concerned.is_empty() {
            return;
        }
        for uid in concerned {
            if let Some(record) = self.record(uid)
                && let Some(served) = lock(&self.served).get(&record.session)
            {
                bump(&served.reported);
            }
        }
        bump(&self.reported);
    }

    /// By pod: of two agents of a node the newer one's.
    pub(super) fn reports_of(&self, record: &InterceptRecord) -> Vec<NodeReport> {
        let mut by_pod = BTreeMap::new();
        let uid = &record.uid;
        let reports = lock(&self.reports);
        let model = self.model.read();
        // Each agent's are in the order of their Intercepts.
        let all = reports.values().flat_map(|of_agent| {
            of_agent
                .range((uid.clone(), String::new())..)
                .take_while(|((of, _), _)| of == uid)
        });
        for ((_, pod), report) in all {
            if report.is_credible(record, &model) {
                by_pod.insert(pod.clone(), report.clone());
            }
        }

        by_pod.into_values().collect()
    }
}

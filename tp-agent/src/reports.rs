//! What became of pods: told to every manager, which picks what is of its sessions.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tp_proto::agent::{PodPhase, PodReport};

/// By UID of the Intercept and of the pod.
pub(crate) type ReportsByPod = BTreeMap<(String, String), PodReport>;

#[derive(Default)]
pub(crate) struct Said {
    /// Of the redirected pods, by UID.
    pods: BTreeMap<String, Vec<PodReport>>,
    refusals: Vec<PodReport>,
}

/// Where everybody says it.
pub(crate) struct Reports(watch::Sender<Said>);

impl Reports {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Said> {
        self.0.subscribe()
    }

    /// All that there is to say of this pod.
    pub(crate) fn set_pod(&self, uid: &str, reports: Vec<PodReport>) {
        self.0.send_if_modified(|said| {
            let is_new = said.pods.get(uid).map_or(&[][..], Vec::as_slice) != reports;
            if reports.is_empty() {
                said.pods.remove(uid);
            } else if is_new {
                said.pods.insert(uid.to_owned(), reports);
            }
            is_new
        });
    }

    pub(crate) fn set_refusals(&self, refusals: Vec<PodReport>) {
        self.0.send_if_modified(|said| {
            let is_new = said.refusals != refusals;
            said.refusals = refusals;
            is_new
        });
    }
}

impl Said {
    pub(crate) fn all(&self) -> ReportsByPod {
        let reports = self.pods.values().flatten().chain(&self.refusals);

        reports
            .map(|report| {
                (
                    (report.intercept.clone(), report.pod.clone()),
                    report.clone(),
                )
            })
            .collect()
    }
}

/// What somebody who was told `told` must be told.
pub(crate) fn changes(told: &ReportsByPod, all: &ReportsByPod) -> Vec<PodReport> {
    let gone = told.iter().filter(|(key, _)| !all.contains_key(key));
    let gone = gone.map(|(_, report)| PodReport {
        phase: PodPhase::Released.into(),
        reason: String::new(),
        ..report.clone()
    });
    let changed = all
        .iter()
        .filter(|(key, report)| told.get(key) != Some(report));

    gone.chain(changed.map(|(_, report)| report.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pod: &str, reason: &str) -> PodReport {
        PodReport {
            intercept: "i".into(),
            pod: pod.into(),
            phase: PodPhase::Redirected.into(),
            reason: reason.into(),
            ..PodReport::default()
        }
    }

    #[test]
    fn a_manager_is_told_what_changed_and_what_is_gone() {
        let reports = Reports::new();
        let said = reports.subscribe();
        reports.set_pod("a", vec![report("a", "")]);
        reports.set_refusals(vec![report("b", "no"), report("c", "no")]);
        let told = said.borrow().all();
        assert_eq!(changes(&ReportsByPod::new(), &told).len(), 3);

        reports.set_pod("a", Vec::new());
        reports.set_refusals(vec![report("b", "no"), report("c", "never")]);
        let changes = changes(&told, &said.borrow().all());

        assert_eq!(changes.len(), 2);
        assert_eq!(
            (changes[0].pod.as_str(), changes[0].phase()),
            ("a", PodPhase::Released)
        );
        assert_eq!(changes[1], report("c", "never"));
    }
}

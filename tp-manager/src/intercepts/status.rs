//! Writes the status of the Intercepts whose session is connected to this replica, or was lately.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tp_core::intercept::holders::Standing;
use tp_proto::{
    agent::PodPhase,
    crd::{Intercept, InterceptStatus},
};

use super::{InterceptRecord, Intercepts};

/// From one round of changes to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// Nothing tells of a session that falls silent.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Names of pods in one status.
const MAX_PODS: usize = 100;

/// Runs until it is aborted.
pub(crate) async fn keep(client: Client, intercepts: Arc<Intercepts>) {
    let mut written: BTreeMap<String, InterceptStatus> = BTreeMap::new();
    let mut changes = intercepts.changes();
    // Only a change that cannot come any more ends it.
    while !matches!(timeout(MAX_INTERVAL, changes.changed()).await, Ok(Err(_))) {
        let wanted = intercepts.statuses();
        written.retain(|uid, _| wanted.iter().any(|(record, _)| record.uid == *uid));
        for (record, mut status) in wanted {
            let before = written.get(&record.uid);
            if let Some(before) = before {
                status.since.clone_from(&before.since);
                if *before == status {
                    continue;
                }
            }
            if before.is_none_or(|before| before.phase != status.phase) {
                let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
                status.since = Some(now.to_string());
            }
            if write(&client, &record, &status).await {
                written.insert(record.uid.clone(), status);
            }
        }
        sleep(INTERVAL).await;
    }
}

/// It is for people: a failure changes nothing but that it is tried again.
async fn write(client: &Client, record: &InterceptRecord, status: &InterceptStatus) -> bool {
    let api: Api<Intercept> = Api::namespaced(client.clone(), &record.object.namespace);
    let patch = Patch::Merge(json!({
        "metadata": {"uid": record.uid},
        "status": {
            "phase": status.phase,
            "ports": status.ports,
            "pods": status.pods,
            "holder": status.holder,
            "since": status.since,
        },
    }));
    let params = PatchParams::default();
    let patched = api.patch_status(&record.object.name, &params, &patch);
    match timeout(TIMEOUT, patched).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "Cannot write the status of an Intercept");
            false
        }
        Err(_) => {
            tracing::debug!("Writing the status of an Intercept took too long");
            false
        }
    }
}

impl Intercepts {
    /// Of the Intercepts whose session is here, or may come back.
    fn statuses(&self) -> Vec<(Arc<InterceptRecord>, InterceptStatus)> {
        let standings = self.standings();
        let mut statuses = Vec::new();
        for presence in self.presences(Instant::now()) {
            let records = presence.announced.keys().filter_map(|uid| self.record(uid));
            for record in records.filter(|record| record.session == presence.session) {
                let standing = standings.get(&record.uid);
                let status = self.status(&record, standing, presence.is_quiet);
                statuses.push((record, status));
            }
        }

        statuses
    }

    fn status(
        &self,
        record: &InterceptRecord,
        standing: Option<&Standing>,
        is_quiet: bool,
    ) -> InterceptStatus {
        let ports: Vec<String> = record
            .spec
            .ports
            .iter()
            .map(|it| it.port.to_string())
            .collect();
        let mut pods: Vec<String> = self
            .reports_of(&record.uid)
            .into_iter()
            .filter(|it| it.report.phase() == PodPhase::Redirected)
            .map(|it| it.report.name)
            .take(MAX_PODS)
            .collect();
        pods.sort();
        let holder = match standing {
            Some(Standing::Holds { others }) => others.values().next(),
            _ => None,
        };
        let holder = holder
            .and_then(|uid| self.record(uid))
            .map(|it| it.user.name().to_owned());
        let phase = match (&holder, pods.is_empty()) {
            (Some(_), _) => "Held",
            (None, _) if is_quiet => "Quiet",
            (None, true) => "Waiting",
            (None, false) => "Active",
        };
        if is_quiet {
            // Their traffic goes to the containers.
            pods.clear();
        }

        InterceptStatus {
            phase: phase.into(),
            ports: ports.join(","),
            pods,
            holder,
            since: None,
        }
    }
}

//! Writes the status of the Intercepts whose session is connected to this replica, or was last. Of those
//! that no replica has had which still lives, the first of the replicas writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tp_core::intercept::holders::Standing;
use tp_process::sync::read;
use tp_proto::{
    agent::PodPhase,
    crd::{Intercept, InterceptStatus},
};

use super::{InterceptRecord, Intercepts, whereabouts::Here};

/// From one round of changes to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// Nothing tells of a session that falls silent.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// What was written is seen after this time.
const SEEN_AFTER: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Names of pods in one status.
const MAX_PODS: usize = 100;

/// The phase that an object has.
pub(super) fn phase(object: &DynamicObject) -> String {
    let phase = object.data.pointer("/status/phase");

    phase.and_then(|it| it.as_str()).unwrap_or_default().into()
}

/// Runs until it is aborted.
pub(crate) async fn keep(client: Client, intercepts: Arc<Intercepts>) {
    let mut written: BTreeMap<String, (InterceptStatus, Instant)> = BTreeMap::new();
    let mut changes = intercepts.changes();
    let mut reported = intercepts.reported.subscribe();
    loop {
        tokio::select! {
            // They last as long as the Intercepts.
            _ = changes.changed() => {}
            _ = reported.changed() => {}
            () = sleep(MAX_INTERVAL) => {}
        }
        let wanted = intercepts.statuses();
        written.retain(|uid, _| wanted.iter().any(|(record, _)| record.uid == *uid));
        for (record, mut status) in wanted {
            let before = written.get(&record.uid);
            if status.since.is_none() {
                let phase_began = before
                    .map(|(before, _)| before)
                    .filter(|before| before.phase == status.phase)
                    .and_then(|before| before.since.clone());
                status.since = Some(phase_began.unwrap_or_else(|| text(Timestamp::now())));
            }
            // Another replica that took this one for gone may have written something else.
            let stands = |at: &Instant| record.phase == status.phase || at.elapsed() < SEEN_AFTER;
            if before.is_some_and(|(before, at)| *before == status && stands(at)) {
                continue;
            }
            // Those before it may have taken their time.
            let now = intercepts.record(&record.uid);
            if now.is_none_or(|now| now.taken.is_some()) {
                continue;
            }
            if write(&client, &record, &status).await {
                written.insert(record.uid.clone(), (status, Instant::now()));
            }
        }
        sleep(INTERVAL).await;
    }
}

fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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
    /// Of the Intercepts that this replica speaks for.
    pub(super) fn statuses(&self) -> Vec<(Arc<InterceptRecord>, InterceptStatus)> {
        let standings = self.standings();
        let mut statuses = Vec::new();
        let mut connected = BTreeSet::new();
        for presence in self.presences(Instant::now()) {
            if !presence.is_connected {
                continue;
            }
            let records = presence.announced.keys().filter_map(|uid| self.record(uid));
            for record in records.filter(|record| record.session == presence.session) {
                let standing = standings.get(&record.uid);
                let status = self.status(&record, standing, presence.is_quiet);
                statuses.push((record, status));
            }
            connected.insert(presence.session);
        }
        let now = (Timestamp::now(), Instant::now());
        let sessions = self.named_sessions();
        for record in read(&self.by_uid).values() {
            let session = &record.session;
            let here = self.here(session);
            let speaks = || self.whereabouts.speaks_for(&session.uid, here, now.1);
            if connected.contains(session) || here == Here::Connected || !speaks() {
                continue;
            }
            let made = *sessions.get(session).unwrap_or(&record.created);
            let away = self.whereabouts.disconnected(&session.uid, here, made, now);
            if let Some(away) = away {
                let since = self.whereabouts.heard(&session.uid, here);
                let away = SignedDuration::try_from(away).unwrap_or_default();
                let since = since.unwrap_or(now.0.saturating_sub(away).unwrap_or_default());
                statuses.push((Arc::clone(record), disconnected(record, since)));
            }
        }
        // Theirs says who took them over, until they are deleted.
        statuses.retain(|(record, _)| record.taken.is_none());

        statuses
    }

    fn status(
        &self,
        record: &InterceptRecord,
        standing: Option<&Standing>,
        is_quiet: bool,
    ) -> InterceptStatus {
        let mut pods: Vec<String> = self
            .reports_of(record)
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
            ports: ports(record),
            pods,
            holder,
            since: None,
        }
    }
}

fn ports(record: &InterceptRecord) -> String {
    let ports = record.spec.ports.iter();
    let ports: Vec<String> = ports.map(|it| it.port.to_string()).collect();

    ports.join(",")
}

/// Nobody comes back to this Intercept: a session that connects again makes its own anew.
fn disconnected(record: &InterceptRecord, since: Timestamp) -> InterceptStatus {
    InterceptStatus {
        phase: "Disconnected".into(),
        ports: ports(record),
        since: Some(text(since)),
        ..InterceptStatus::default()
    }
}

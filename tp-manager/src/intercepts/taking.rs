//! Who has which port, and taking ports over from others.
//!
//! The taker is written into the status before the object is deleted, so that the replica that
//! serves the other session can tell its user, whichever replica was asked.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::timeout;
use tp_core::intercept::holders::{WorkloadKey, share_a_pod};
use tp_process::sync::read;
use tp_proto::crd::{ENDED_BY_SOMEBODY, Intercept, TAKEN_OVER};

use super::{InterceptRecord, Intercepts};
use crate::index;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Intercepts that are gone, whose sessions may still ask.
const MAX_ENDED: usize = 1024;

/// An Intercept, and those of its ports that are meant.
#[derive(Debug, Clone)]
pub(crate) struct HeldPorts {
    pub(crate) record: Arc<InterceptRecord>,
    pub(crate) ports: Vec<u16>,
}

/// Ends somebody's Intercept for another user.
pub(crate) trait EndIntercept: Send + Sync + 'static {
    fn end(&self, held: HeldPorts, taker: String) -> BoxFuture<'static, Result<(), String>>;
}

/// Ends Intercepts at the API server.
pub(crate) struct Ender(pub(crate) Client);

impl EndIntercept for Ender {
    fn end(&self, held: HeldPorts, taker: String) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(end(self.0.clone(), held, taker))
    }
}

async fn end(client: Client, held: HeldPorts, taker: String) -> Result<(), String> {
    let HeldPorts { record, ports } = held;
    let (namespace, name) = (&record.object.namespace, &record.object.name);
    let api: Api<Intercept> = Api::namespaced(client, namespace);
    let note = Patch::Merge(json!({
        "metadata": {"uid": record.uid},
        "status": {"phase": TAKEN_OVER, "holder": taker, "ports": joined(&ports, ",")},
    }));
    let params = PatchParams::default();
    let noted = timeout(TIMEOUT, api.patch_status(name, &params, &note)).await;
    if !matches!(noted, Ok(Ok(_))) {
        // Its user is told that somebody did it.
        tracing::debug!(namespace, name, "Taker of an Intercept not noted");
    }
    match timeout(TIMEOUT, api.delete(name, &index::only(&record.uid))).await {
        Ok(Ok(_)) => {
            tracing::info!(namespace, name, %taker, "Intercept taken over");
            Ok(())
        }
        // It was ended meanwhile; another may have its name.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
        Ok(Err(error)) => Err(format!("cannot delete Intercept {name}: {error}")),
        Err(_) => Err(format!(
            "the API server did not delete Intercept {name} in time"
        )),
    }
}

fn joined(ports: &[u16], separator: &str) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();

    ports.join(separator)
}

impl Intercepts {
    /// Who has which ports of the workloads of a namespace, by age.
    pub(crate) fn held_in(&self, namespace: &str) -> Vec<HeldPorts> {
        let standings = self.standings();
        let by_uid = read(&self.by_uid);
        let here = by_uid
            .values()
            .filter(|record| record.object.namespace == namespace);
        let held = here.filter_map(|record| {
            let standing = standings.get(&record.uid)?;
            let ports: Vec<u16> = record.held(standing).collect();

            (!ports.is_empty()).then(|| HeldPorts {
                record: Arc::clone(record),
                ports,
            })
        });
        let mut held: Vec<HeldPorts> = held.collect();
        held.sort_by_key(|it| (it.record.created, it.record.uid.clone()));

        held
    }

    /// What must end for somebody to have these ports of this workload, or of one pod of it.
    pub(crate) fn in_the_way(
        &self,
        workload: &WorkloadKey,
        ports: &[u16],
        pod: Option<&str>,
    ) -> Vec<HeldPorts> {
        let mut held = self.held_in(&workload.namespace);
        for held in &mut held {
            held.ports.retain(|port| ports.contains(port));
        }
        held.retain(|held| {
            let claim = held.record.claim();
            let overlaps = share_a_pod(claim.pod.as_deref(), pod);
            overlaps && claim.workload == *workload && !held.ports.is_empty()
        });

        held
    }
}

/// Intercepts that were deleted lately, by UID: why, as a sentence.
#[derive(Debug, Default)]
pub(super) struct EndedIntercepts {
    by_uid: BTreeMap<String, String>,
    order: VecDeque<String>,
}

impl EndedIntercepts {
    /// With why its user might not have it any more, if so.
    pub(super) fn insert(&mut self, record: &InterceptRecord, denial: Option<String>) {
        let taken = record.taken.as_ref().map(Taken::sentence);
        let why = taken.or(denial);
        let why = why.unwrap_or_else(|| ENDED_BY_SOMEBODY.to_owned());
        if self.by_uid.insert(record.uid.clone(), why).is_none() {
            self.order.push_back(record.uid.clone());
        }
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_uid.remove(&oldest);
        }
    }

    pub(super) fn why(&self, uid: &str) -> Option<String> {
        self.by_uid.get(uid).cloned()
    }
}

/// Who took which ports over, as the status has it. For people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    user: String,
    ports: String,
}

impl Taken {
    pub(super) fn of(status: &serde_json::Value) -> Option<Self> {
        let text = |field: &str| status.get(field)?.as_str().map(str::to_owned);
        if text("phase")? != TAKEN_OVER {
            return None;
        }

        Some(Self {
            user: text("holder")?,
            ports: text("ports")?,
        })
    }

    fn sentence(&self) -> String {
        let plural = if self.ports.contains(',') { "s" } else { "" };
        let ports = self.ports.replace(',', ", ");

        format!("{} took port{plural} {ports} over", self.user)
    }
}

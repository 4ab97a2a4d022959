//! Waits for the managers and the agents, and reports the cluster's reason if they do not start.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::time::{Instant, sleep};
use tp_proto::fault::{Fault, FaultKind};

use super::{cluster::Cluster, manifests::Parameters};
use crate::progress::Progress;
use pods::PodState;

mod agents;
mod managers;
mod pods;

const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Returns the nodes on which no agent runs, since they are not Ready.
pub(crate) async fn wait(
    cluster: &Cluster,
    parameters: &Parameters,
    limit: Duration,
    progress: &mut Progress,
) -> Result<Vec<String>, Fault> {
    let mut waiting = Waiting {
        limit,
        deadline: Instant::now() + limit,
        shown: String::new(),
        progress,
    };
    while let Some(state) = managers::pending(cluster, parameters).await? {
        waiting.go_on(MANAGERS, state).await?;
    }
    if parameters.agents.is_none() {
        return Ok(Vec::new());
    }
    loop {
        match agents::look(cluster).await? {
            agents::Rollout::Done { without } => return Ok(without),
            agents::Rollout::Pending(state) => waiting.go_on(AGENTS, state).await?,
        }
    }
}

/// Whom we wait for.
#[derive(Clone, Copy)]
struct Awaited {
    all: &'static str,
    one: &'static str,
    advice: &'static str,
}

const MANAGERS: Awaited = Awaited {
    all: "the managers",
    one: "the manager",
    advice: "",
};
const AGENTS: Awaited = Awaited {
    all: "the agents",
    one: "an agent",
    advice: " (the managers are ready: `tp connect` works, and --no-agent installs no agents)",
};

struct Waiting<'a> {
    limit: Duration,
    deadline: Instant,
    shown: String,
    progress: &'a mut Progress,
}

impl Waiting<'_> {
    /// Shows the state and waits a moment, unless it is time to give up.
    async fn go_on(&mut self, awaited: Awaited, state: PodState) -> Result<(), Fault> {
        let Awaited { all, one, advice } = awaited;
        let PodState { text, hopeless } = state;
        let shown = format!("waiting for {all}: {text}");
        if shown != self.shown {
            self.progress.step(&shown);
            self.shown = shown;
        }
        if hopeless {
            let message = format!("{one} does not start: {text}{advice}");
            return Err(Fault::new(FaultKind::Failed, message));
        }
        if Instant::now() >= self.deadline {
            let seconds = self.limit.as_secs();
            let message = format!("{one} is not ready after {seconds} s: {text}{advice}");
            return Err(Fault::new(FaultKind::TemporaryFailure, message));
        }
        sleep(POLL_INTERVAL).await;

        Ok(())
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The node that a pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// The nodes whose kubelet does not say that they are Ready; none if this user may not look.
pub(crate) async fn unready_nodes(cluster: &Cluster) -> BTreeSet<String> {
    let nodes: Api<Node> = Api::all(cluster.client().clone());
    let Ok(list) = nodes.list(&ListParams::default()).await else {
        return BTreeSet::new();
    };
    let is_ready = |node: &Node| {
        node.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };

    list.iter()
        .filter(|node| !is_ready(node))
        .map(|node| node.name_any())
        .collect()
}

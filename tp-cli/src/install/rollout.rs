//! Waits for the managers, and reports the cluster's reason if they do not start.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ContainerStatus, Event, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
};
use tokio::time::{Instant, sleep};
use tp_proto::{
    crd::MANAGER_NAME,
    fault::{Fault, FaultKind},
};

use super::{
    cluster::Cluster,
    manifests::{Parameters, pod_name},
};
use crate::progress::Progress;

const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Waiting reasons that do not resolve by themselves.
const HOPELESS: [&str; 7] = [
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
];

pub(crate) async fn wait(
    cluster: &Cluster,
    parameters: &Parameters,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Fault> {
    let deadline = Instant::now() + limit;
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client().clone(), &parameters.namespace);
    let mut last_shown = String::new();
    loop {
        let set = sets
            .get(MANAGER_NAME)
            .await
            .map_err(|error| cluster.fault("read StatefulSet tp-manager", &error))?;
        if is_rolled_out(&set, parameters.replicas) {
            return Ok(());
        }
        let state = state(cluster, parameters, &set).await?;
        if state.text != last_shown {
            progress.step(&format!("waiting for the managers: {}", state.text));
            last_shown.clone_from(&state.text);
        }
        if state.hopeless {
            return Err(Fault::new(
                FaultKind::Failed,
                format!("the manager does not start: {}", state.text),
            ));
        }
        if Instant::now() >= deadline {
            return Err(Fault::new(
                FaultKind::TemporaryFailure,
                format!(
                    "the manager is not ready after {} s: {}",
                    limit.as_secs(),
                    state.text
                ),
            ));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Returns whether the status describes the set as applied.
fn is_observed(set: &StatefulSet) -> bool {
    set.status
        .as_ref()
        .is_some_and(|status| status.observed_generation >= set.metadata.generation)
}

fn is_rolled_out(set: &StatefulSet, replicas: u16) -> bool {
    let Some(status) = &set.status else {
        return false;
    };
    let replicas = i32::from(replicas);

    is_observed(set)
        && status.replicas == replicas
        && status.ready_replicas == Some(replicas)
        && status.updated_replicas == Some(replicas)
        && status.update_revision == status.current_revision
}

/// The state of the rollout: that of the first pod that is not ready.
struct State {
    text: String,
    hopeless: bool,
}

impl State {
    fn pending(text: String) -> Self {
        Self {
            text,
            hopeless: false,
        }
    }
}

async fn state(
    cluster: &Cluster,
    parameters: &Parameters,
    set: &StatefulSet,
) -> Result<State, Fault> {
    if !is_observed(set) {
        // Until then the status describes the previous installation, and so do its pods.
        return Ok(State::pending("the change is about to begin".into()));
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), &parameters.namespace);
    let update = set
        .status
        .as_ref()
        .and_then(|status| status.update_revision.as_deref());
    for ordinal in 0..parameters.replicas {
        let name = pod_name(ordinal);
        let pod = pods
            .get_opt(&name)
            .await
            .map_err(|error| cluster.fault(&format!("read Pod {name}"), &error))?;
        let Some(pod) = pod else {
            return Ok(not_created(cluster, parameters, &name).await);
        };
        let revision = pod.labels().get("controller-revision-hash");
        if revision.map(String::as_str) != update || pod.metadata.deletion_timestamp.is_some() {
            return Ok(State::pending(format!("{name} is being replaced")));
        }
        if !is_ready(&pod) {
            return Ok(of_pod(&pods, &pod).await);
        }
    }

    Ok(State::pending("the last pod became ready".into()))
}

/// Admission (pod security, quota) reports refusals as events of the StatefulSet.
async fn not_created(cluster: &Cluster, parameters: &Parameters, pod: &str) -> State {
    let events: Api<Event> = Api::namespaced(cluster.client().clone(), &parameters.namespace);
    let about = ListParams::default().fields(&format!(
        "involvedObject.kind=StatefulSet,involvedObject.name={MANAGER_NAME},reason=FailedCreate"
    ));
    let message = events
        .list(&about)
        .await
        .ok()
        .and_then(|events| events.items.into_iter().next_back())
        .and_then(|event| event.message);

    State::pending(match message {
        Some(message) => format!("{pod} is not created: {message}"),
        None => format!("{pod} is not created yet"),
    })
}

async fn of_pod(pods: &Api<Pod>, pod: &Pod) -> State {
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    if let Some(scheduling) = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
    {
        let reason = scheduling.message.clone().unwrap_or_default();
        return State::pending(format!("{name} is not scheduled: {reason}"));
    }
    let Some(container) = status.container_statuses.iter().flatten().next() else {
        return State::pending(format!("{name} is being set up"));
    };
    let Some(waiting) = container
        .state
        .as_ref()
        .and_then(|state| state.waiting.as_ref())
    else {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready")
            .and_then(|condition| condition.message.clone());
        let detail = condition.unwrap_or_else(|| "its readiness probe does not answer yet".into());
        return State::pending(format!("{name} runs and is not ready ({detail})"));
    };

    let reason = waiting.reason.clone().unwrap_or_default();
    let detail = match reason.as_str() {
        "CrashLoopBackOff" => last_line(pods, &name, container).await,
        _ => waiting.message.clone().unwrap_or_default(),
    };
    State {
        hopeless: HOPELESS.contains(&reason.as_str()),
        text: if detail.is_empty() {
            format!("{name}: {reason}")
        } else {
            format!("{name}: {reason}: {detail}")
        },
    }
}

/// The last log line of an ended container, or its exit reason.
async fn last_line(pods: &Api<Pod>, name: &str, container: &ContainerStatus) -> String {
    let params = LogParams {
        previous: true,
        tail_lines: Some(1),
        ..LogParams::default()
    };
    let line = pods.logs(name, &params).await.unwrap_or_default();
    if !line.trim().is_empty() {
        return line.trim().to_owned();
    }

    container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
        .map(|ended| {
            let reason = ended.reason.as_deref().unwrap_or("ended");
            format!("{reason}, exit code {}", ended.exit_code)
        })
        .unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

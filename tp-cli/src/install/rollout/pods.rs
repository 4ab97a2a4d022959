//! Why a pod is not ready, in the cluster's words.

use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, Event, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
};

use crate::install::cluster::Cluster;

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

/// The state of a rollout: that of a pod that is not ready.
pub(super) struct PodState {
    pub(super) text: String,
    pub(super) hopeless: bool,
}

impl PodState {
    pub(super) fn pending(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            hopeless: false,
        }
    }
}

/// The object that makes a pod.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// Admission (pod security, quota) reports refusals as events of the owner.
pub(super) async fn not_created(cluster: &Cluster, owner: Owner<'_>, pod: &str) -> PodState {
    let Owner {
        kind,
        namespace,
        name,
    } = owner;
    let events: Api<Event> = Api::namespaced(cluster.client().clone(), namespace);
    let about = ListParams::default().fields(&format!(
        "involvedObject.kind={kind},involvedObject.name={name},reason=FailedCreate"
    ));
    let message = events
        .list(&about)
        .await
        .ok()
        .and_then(|events| events.items.into_iter().next_back())
        .and_then(|event| event.message);

    PodState::pending(match message {
        Some(message) => format!("{pod} is not created: {message}"),
        None => format!("{pod} is not created yet"),
    })
}

/// `called`: its name in the text.
pub(super) async fn of_pod(pods: &Api<Pod>, pod: &Pod, called: &str) -> PodState {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |kind: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == kind)
    };
    if let Some(scheduling) = condition("PodScheduled").filter(|it| it.status == "False") {
        let reason = scheduling.message.clone().unwrap_or_default();
        return PodState::pending(format!("{called} is not scheduled: {reason}"));
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if containers.is_empty() {
        return PodState::pending(format!("{called} is being set up"));
    }
    let Some((container, waiting)) = worst(containers) else {
        let condition = condition("Ready").and_then(|condition| condition.message.clone());
        let detail = condition.unwrap_or_else(|| "its readiness probe does not answer yet".into());
        return PodState::pending(format!("{called} runs and is not ready ({detail})"));
    };

    let reason = waiting.reason.clone().unwrap_or_default();
    let detail = match reason.as_str() {
        "CrashLoopBackOff" => last_line(pods, &pod.name_any(), container).await,
        _ => waiting.message.clone().unwrap_or_default(),
    };
    let mut text = match containers {
        [_] => format!("{called}: {reason}"),
        _ => format!("{called}: {}: {reason}", container.name),
    };
    if !detail.is_empty() {
        text = format!("{text}: {detail}");
    }

    PodState {
        hopeless: is_hopeless(waiting),
        text,
    }
}

/// Of the containers that wait, one whose reason does not resolve by itself, if there is such a one.
fn worst(containers: &[ContainerStatus]) -> Option<(&ContainerStatus, &ContainerStateWaiting)> {
    containers
        .iter()
        .filter_map(|it| Some((it, it.state.as_ref()?.waiting.as_ref()?)))
        .min_by_key(|(_, waiting)| !is_hopeless(waiting))
}

fn is_hopeless(waiting: &ContainerStateWaiting) -> bool {
    waiting
        .reason
        .as_deref()
        .is_some_and(|reason| HOPELESS.contains(&reason))
}

/// The last log line of an ended container, or its exit reason.
async fn last_line(pods: &Api<Pod>, pod: &str, container: &ContainerStatus) -> String {
    let params = LogParams {
        container: Some(container.name.clone()),
        previous: true,
        tail_lines: Some(1),
        ..LogParams::default()
    };
    let line = pods.logs(pod, &params).await.unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_containers_the_one_that_will_not_start_is_told() {
        let container = |name: &str, state: serde_json::Value| -> ContainerStatus {
            let status = json!({
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": state,
            });
            serde_json::from_value(status).unwrap()
        };
        let waits = |reason: &str| json!({"waiting": {"reason": reason}});
        let told = |containers: &[ContainerStatus]| {
            worst(containers).map(|(container, _)| container.name.clone())
        };

        let runs = container("a", json!({"running": {}}));
        let begins = container("b", waits("ContainerCreating"));
        let ended = container("c", waits("CrashLoopBackOff"));
        assert_eq!(told(std::slice::from_ref(&runs)), None);
        assert_eq!(told(&[runs.clone(), begins.clone()]).unwrap(), "b");
        assert_eq!(told(&[runs, begins, ended]).unwrap(), "c");
    }
}

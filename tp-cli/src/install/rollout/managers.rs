//! The rollout of the managers.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{Api, ResourceExt as _};
use tp_proto::{crd::MANAGER_NAME, fault::Fault};

use super::{
    is_ready,
    pods::{Owner, PodState, not_created, of_pod},
};
use crate::install::{
    cluster::Cluster,
    manifests::{Parameters, pod_name},
};

/// The state of the first pod that is not ready; `None` if all are.
pub(super) async fn pending(
    cluster: &Cluster,
    parameters: &Parameters,
) -> Result<Option<PodState>, Fault> {
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client().clone(), &parameters.namespace);
    let set = sets
        .get(MANAGER_NAME)
        .await
        .map_err(|error| cluster.fault("read StatefulSet tp-manager", &error))?;
    if is_rolled_out(&set, parameters.replicas) {
        return Ok(None);
    }

    state(cluster, parameters, &set).await.map(Some)
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

async fn state(
    cluster: &Cluster,
    parameters: &Parameters,
    set: &StatefulSet,
) -> Result<PodState, Fault> {
    if !is_observed(set) {
        // Until then the status describes the previous installation, and so do its pods.
        return Ok(PodState::pending("the change is about to begin"));
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
            let owner = Owner {
                kind: "StatefulSet",
                namespace: &parameters.namespace,
                name: MANAGER_NAME,
            };
            return Ok(not_created(cluster, owner, &name).await);
        };
        let revision = pod.labels().get("controller-revision-hash");
        if revision.map(String::as_str) != update || pod.metadata.deletion_timestamp.is_some() {
            return Ok(PodState::pending(format!("{name} is being replaced")));
        }
        if !is_ready(&pod) {
            return Ok(of_pod(&pods, &pod, &name).await);
        }
    }

    Ok(PodState::pending("the last pod became ready"))
}

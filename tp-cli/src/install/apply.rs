//! Applies the objects and removes those of earlier flags.

use std::time::Duration;

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        policy::v1::PodDisruptionBudget,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use tp_proto::fault::{Fault, FaultKind};

use super::{
    cluster::Cluster,
    manifests::{self, MANAGED_BY, Parameters, SELECTOR},
    object::Object,
};
use crate::progress::Progress;

pub(crate) const FIELD_MANAGER: &str = "tp";
const ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the namespaces that existed before: they are used unchanged.
pub(crate) async fn apply(
    cluster: &Cluster,
    objects: &[Object],
    parameters: &Parameters,
    progress: &mut Progress,
) -> Result<Vec<String>, Fault> {
    let mut foreign = Vec::new();
    for object in objects {
        progress.step(&format!("applying {}", object.title()));
        if object.kind() == "Namespace" && is_foreign(cluster, object).await? {
            foreign.push(object.name().to_owned());
            continue;
        }
        apply_one(cluster, object).await?;
        if object.kind() == "CustomResourceDefinition" {
            established(cluster, object.name()).await?;
        }
    }
    remove_surplus(cluster, objects, &parameters.namespace).await?;

    Ok(foreign)
}

pub(crate) async fn apply_one(cluster: &Cluster, object: &Object) -> Result<(), Fault> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    object
        .api(cluster)
        .patch(object.name(), &params, &Patch::Apply(&object.value))
        .await
        .map(|_: DynamicObject| ())
        .map_err(|error| cluster.fault(&format!("apply {}", object.title()), &error))
}

/// Returns whether this namespace existed before tp. Then its labels (Pod Security) are its
/// owner's, and tp does not remove it.
async fn is_foreign(cluster: &Cluster, object: &Object) -> Result<bool, Fault> {
    let namespaces: Api<Namespace> = Api::all(cluster.client().clone());
    let existing = namespaces
        .get_opt(object.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))?;

    Ok(existing.is_some_and(|namespace| !is_ours(&namespace)))
}

async fn established(cluster: &Cluster, name: &str) -> Result<(), Fault> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().clone());
    let established = await_condition(definitions, name, conditions::is_crd_established());

    match tokio::time::timeout(ESTABLISHED_TIMEOUT, established).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Fault::new(
            FaultKind::Failed,
            format!("cannot watch CustomResourceDefinition {name}: {error}"),
        )),
        Err(_) => Err(Fault::new(
            FaultKind::TemporaryFailure,
            format!(
                "the API server did not establish CustomResourceDefinition {name} within {} s: \
                 look at its status",
                ESTABLISHED_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// Earlier flags may have asked for more replicas, another --expose, or agents.
async fn remove_surplus(
    cluster: &Cluster,
    objects: &[Object],
    namespace: &str,
) -> Result<(), Fault> {
    let list = ListParams::default().labels(SELECTOR);
    let wanted = |kind: &str, name: &str| {
        objects
            .iter()
            .any(|object| object.kind() == kind && object.name() == name)
    };

    let services: Api<Service> = Api::namespaced(cluster.client().clone(), namespace);
    let found = services
        .list(&list)
        .await
        .map_err(|error| cluster.fault("list the Services of tp", &error))?;
    for name in found.iter().map(|service| service.name_any()) {
        if !wanted("Service", &name) {
            remove(cluster, &services, "Service", &name).await?;
        }
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client().clone(), namespace);
    let found = budgets
        .list(&list)
        .await
        .map_err(|error| cluster.fault("list the PodDisruptionBudgets of tp", &error))?;
    for name in found.iter().map(|budget| budget.name_any()) {
        if !wanted("PodDisruptionBudget", &name) {
            remove(cluster, &budgets, "PodDisruptionBudget", &name).await?;
        }
    }
    let known = manifests::render(&Parameters::for_removal(namespace));
    let surplus = known.iter().rev().filter(|object| {
        // A namespace goes with all that is in it: `tp uninstall --everything` takes that.
        object.kind() != "Namespace" && !wanted(object.kind(), object.name())
    });
    for object in surplus {
        remove_ours(cluster, object).await?;
    }

    Ok(())
}

async fn remove_ours(cluster: &Cluster, object: &Object) -> Result<(), Fault> {
    let api = object.api(cluster);
    let found = api
        .get_opt(object.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))?;
    if found.is_some_and(|found| is_ours(&found)) {
        remove(cluster, &api, object.kind(), object.name()).await?;
    }

    Ok(())
}

/// Returns whether tp made it.
pub(crate) fn is_ours(object: &impl ResourceExt) -> bool {
    object.labels().get(MANAGED_BY).is_some_and(|by| by == "tp")
}

/// Deletes one object; succeeds if it is gone already.
pub(crate) async fn remove<K>(
    cluster: &Cluster,
    api: &Api<K>,
    kind: &str,
    name: &str,
) -> Result<(), Fault>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    remove_with(cluster, api, kind, name, &DeleteParams::background()).await
}

pub(crate) async fn remove_with<K>(
    cluster: &Cluster,
    api: &Api<K>,
    kind: &str,
    name: &str,
    params: &DeleteParams,
) -> Result<(), Fault>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.delete(name, params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(cluster.fault(&format!("delete {kind} {name}"), &error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::install::lab::Lab;

    async fn install_without_agents(lab: &Lab) {
        let parameters = Parameters {
            agents: None,
            expose: crate::install::args::Expose::NodePort,
            ..Parameters::for_removal("tp-system")
        };
        let objects = manifests::render(&parameters);

        remove_surplus(&lab.connect().await, &objects, "tp-system")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn an_install_without_agents_takes_those_of_an_earlier_one_away() {
        let lab = Lab::installed();
        let before = lab.names().len();

        install_without_agents(&lab).await;

        // A namespace stays until everything goes.
        assert_eq!(lab.found_by_name("agent"), ["tp-agents"]);
        assert_eq!(lab.names().len(), before - 8);
        install_without_agents(&lab).await;
    }

    #[tokio::test]
    async fn what_is_called_as_an_agents_is_but_is_not_of_tp_stays() {
        let lab = Lab::installed();
        let path = "/apis/apps/v1/namespaces/tp-agents/daemonsets/tp-agent";
        lab.0.lock().unwrap().get_mut(path).unwrap()["metadata"]["labels"] = json!({});

        install_without_agents(&lab).await;

        assert!(lab.0.lock().unwrap().contains_key(path));
    }
}

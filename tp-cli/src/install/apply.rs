//! Applies the objects and removes those that other flags had made.

use std::time::Duration;

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        policy::v1::PodDisruptionBudget,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use tp_proto::fault::{Fault, FaultKind};

use super::{
    cluster::Cluster,
    manifests::{MANAGED_BY, Parameters, SELECTOR},
    object::Object,
};
use crate::progress::Progress;

pub(crate) const FIELD_MANAGER: &str = "tp";
const ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn apply(
    cluster: &Cluster,
    objects: Vec<Object>,
    parameters: &Parameters,
    progress: &mut Progress,
) -> Result<(), Fault> {
    for mut object in objects.iter().cloned() {
        progress.step(&format!("applying {}", object.title()));
        if object.kind() == "Namespace" {
            leave_to_its_owner(cluster, &mut object).await?;
        }
        apply_one(cluster, &object).await?;
        if object.kind() == "CustomResourceDefinition" {
            established(cluster, object.name()).await?;
        }
    }

    remove_surplus(cluster, &objects, &parameters.namespace).await
}

async fn apply_one(cluster: &Cluster, object: &Object) -> Result<(), Fault> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    object
        .api(cluster)
        .patch(object.name(), &params, &Patch::Apply(&object.value))
        .await
        .map(|_: DynamicObject| ())
        .map_err(|error| cluster.fault(&format!("apply {}", object.title()), &error))
}

/// A namespace that was there before is not ours to remove later.
async fn leave_to_its_owner(cluster: &Cluster, object: &mut Object) -> Result<(), Fault> {
    let namespaces: Api<Namespace> = Api::all(cluster.client().clone());
    let existing = namespaces
        .get_opt(object.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", object.title()), &error))?;
    let foreign = existing.is_some_and(|namespace| {
        namespace
            .labels()
            .get(MANAGED_BY)
            .is_none_or(|by| by != "tp")
    });
    if foreign && let Some(labels) = object.value["metadata"]["labels"].as_object_mut() {
        labels.remove(MANAGED_BY);
    }

    Ok(())
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

/// Other flags may have meant more replicas, or another way to expose them.
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

    Ok(())
}

/// Deletes one object; one that is gone already is as good.
pub(crate) async fn remove<K>(
    cluster: &Cluster,
    api: &Api<K>,
    kind: &str,
    name: &str,
) -> Result<(), Fault>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(cluster.fault(&format!("delete {kind} {name}"), &error)),
    }
}

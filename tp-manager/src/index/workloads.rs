//! Lists the workloads of a namespace on request.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::PodTemplateSpec,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::time::timeout;

use crate::model::{Port, Workload};

const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn list(client: Client, namespace: String) -> Result<Vec<Workload>, String> {
    match timeout(TIMEOUT, list_all(client, &namespace)).await {
        Ok(Ok(workloads)) => Ok(workloads),
        Ok(Err(error)) => Err(format!("cannot list the workloads of {namespace}: {error}")),
        Err(_) => Err(format!(
            "the API server did not list the workloads of {namespace} in time"
        )),
    }
}

/// [`list`], boxed for a module that must not know Kubernetes.
pub(crate) fn boxed(
    client: Client,
    namespace: String,
) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
    Box::pin(list(client, namespace))
}

async fn list_all(client: Client, namespace: &str) -> Result<Vec<Workload>, kube::Error> {
    let everything = ListParams::default();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client, namespace);
    let (deployments, stateful_sets, daemon_sets) = tokio::try_join!(
        deployments.list(&everything),
        stateful_sets.list(&everything),
        daemon_sets.list(&everything),
    )?;

    let mut workloads: Vec<Workload> = deployments.iter().map(deployment).collect();
    workloads.extend(stateful_sets.iter().map(stateful_set));
    workloads.extend(daemon_sets.iter().map(daemon_set));
    workloads.sort_by(|left, right| (&left.name, left.kind).cmp(&(&right.name, right.kind)));

    Ok(workloads)
}

fn deployment(object: &Deployment) -> Workload {
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    Workload {
        kind: "Deployment",
        name: object.name_any(),
        ready: count(status.and_then(|status| status.ready_replicas), 0),
        desired: count(spec.and_then(|spec| spec.replicas), 1),
        ports: ports(spec.map(|spec| &spec.template)),
    }
}

fn stateful_set(object: &StatefulSet) -> Workload {
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    Workload {
        kind: "StatefulSet",
        name: object.name_any(),
        ready: count(status.and_then(|status| status.ready_replicas), 0),
        desired: count(spec.and_then(|spec| spec.replicas), 1),
        ports: ports(spec.map(|spec| &spec.template)),
    }
}

fn daemon_set(object: &DaemonSet) -> Workload {
    let status = object.status.as_ref();
    Workload {
        kind: "DaemonSet",
        name: object.name_any(),
        ready: count(status.map(|status| status.number_ready), 0),
        desired: count(status.map(|status| status.desired_number_scheduled), 0),
        ports: ports(object.spec.as_ref().map(|spec| &spec.template)),
    }
}

fn count(value: Option<i32>, default: u32) -> u32 {
    value.map_or(default, |value| u32::try_from(value).unwrap_or(0))
}

fn ports(template: Option<&PodTemplateSpec>) -> Vec<Port> {
    template
        .and_then(|template| template.spec.as_ref())
        .into_iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_tells_its_replicas_and_ports() {
        let object: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3,
                "selector": {},
                "template": {"spec": {"containers": [
                    {"name": "web", "ports": [{"name": "http", "containerPort": 8080}]},
                ]}},
            },
            "status": {"readyReplicas": 2},
        }))
        .unwrap();

        let workload = deployment(&object);

        assert_eq!((workload.ready, workload.desired), (2, 3));
        assert_eq!(workload.ports[0].port, 8080);
    }
}

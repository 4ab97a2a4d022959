//! Finds the container whose environment a user asks for.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod, PodStatus};
use kube::{Client, ResourceExt as _, api::ListParams};
use tokio::time::timeout;
use tp_core::environment::rebuild::{SpecValue, SpecVariable};

use super::{Found, Search, TIMEOUT, is_ready};
use crate::model::{FindError, FoundContainer, WantedContainer};

/// Of kubectl.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A container that runs, of a pod of the workload. Boxed for a module that must not know Kubernetes.
pub(crate) fn find_container(
    client: Client,
    wanted: WantedContainer,
) -> BoxFuture<'static, Result<FoundContainer, FindError>> {
    let namespace = wanted.namespace.clone();
    let search = Search { client, namespace };

    Box::pin(async move {
        let found = timeout(TIMEOUT, search.container(&wanted)).await;
        found.unwrap_or_else(|_| {
            let reason = "the API server did not find the workload in time";
            Err(FindError::Unavailable(reason.into()))
        })
    })
}

impl Search {
    async fn container(&self, wanted: &WantedContainer) -> Result<FoundContainer, FindError> {
        let services = self.list(&ListParams::default()).await?;
        let found = self.named(&wanted.workload, &services).await?;
        let pods = self.pods(&found).await?;

        choose(&found, pods, wanted)
    }
}

/// Of the first pod, rather of one that is Ready, in which the container runs.
fn choose(
    found: &Found,
    mut pods: Vec<Pod>,
    wanted: &WantedContainer,
) -> Result<FoundContainer, FindError> {
    let is_wanted = |pod: &Pod| {
        wanted
            .pod
            .as_ref()
            .is_none_or(|name| pod.name_any() == *name)
    };
    pods.retain(|pod| is_wanted(pod) && pod.metadata.deletion_timestamp.is_none());
    pods.sort_by_key(|pod| (!is_ready(pod), pod.name_any()));
    for pod in &pods {
        let container = container_of(pod, wanted)?;
        let status = pod.status.as_ref();
        if let Some(id) = status.and_then(|status| running(status, &container.name)) {
            return Ok(FoundContainer {
                kind: format!("{:?}", found.kind),
                workload: found.name.clone(),
                pod: pod.name_any(),
                pod_uid: pod.uid().unwrap_or_default(),
                node: node(pod).to_owned(),
                container: container.name.clone(),
                id,
                spec: variables(pod, container),
            });
        }
    }
    let title = found.title();
    let reason = match (&wanted.pod, pods.first()) {
        (Some(pod), None) => format!("{title} has no pod {pod}"),
        (_, Some(pod)) => format!(
            "no container of {title} runs whose environment could be read: `kubectl -n {} describe \
             pod {}` tells why",
            wanted.namespace,
            pod.name_any()
        ),
        (None, None) => format!(
            "{title} has no pods at the moment: the environment is that of a container that runs"
        ),
    };

    Err(FindError::NotFound(reason))
}

fn container_of<'a>(pod: &'a Pod, wanted: &WantedContainer) -> Result<&'a Container, FindError> {
    let spec = pod.spec.iter();
    let stays = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let all: Vec<&Container> = spec
        .flat_map(|spec| {
            let staying = spec.init_containers.iter().flatten().filter(stays);
            spec.containers.iter().chain(staying)
        })
        .collect();
    let named = |name: &String| all.iter().copied().find(|it| it.name == *name);
    if let Some(name) = &wanted.container {
        return named(name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
            FindError::NotFound(format!(
                "pod {} has no container {name}: it has {}",
                pod.name_any(),
                names.join(", ")
            ))
        });
    }
    let annotated = pod.annotations().get(DEFAULT_CONTAINER).and_then(named);
    let otherwise = || wanted.otherwise.as_ref().and_then(named);

    annotated
        .or_else(otherwise)
        .or_else(|| all.first().copied())
        .ok_or_else(|| FindError::NotFound(format!("pod {} has no container", pod.name_any())))
}

/// The id of a container that runs.
fn running(status: &PodStatus, name: &str) -> Option<String> {
    let init = status.init_container_statuses.iter().flatten();
    let mut statuses = status.container_statuses.iter().flatten().chain(init);
    let status = statuses.find(|it| it.name == name)?;
    status.state.as_ref()?.running.as_ref()?;

    Some(
        status
            .container_id
            .as_ref()?
            .split_once("://")?
            .1
            .to_owned(),
    )
}

fn node(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();

    spec.and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

/// Sources of many variables have one entry, before the others.
fn variables(pod: &Pod, container: &Container) -> Vec<SpecVariable> {
    let sources = container.env_from.iter().flatten().flat_map(|source| {
        let map = source.config_map_ref.iter();
        let secret = source.secret_ref.iter();
        let map = map.map(|it| format!("ConfigMap {}", it.name));

        map.chain(secret.map(|it| format!("Secret {}", it.name)))
    });
    let sources: Vec<String> = sources.collect();
    let of_sources = (!sources.is_empty()).then(|| SpecVariable {
        name: "*".into(),
        value: SpecValue::Elsewhere(sources.join(", ")),
    });
    let of_names = container.env.iter().flatten().map(|variable| SpecVariable {
        name: variable.name.clone(),
        value: value(pod, variable),
    });

    of_sources.into_iter().chain(of_names).collect()
}

fn value(pod: &Pod, variable: &EnvVar) -> SpecValue {
    let Some(source) = &variable.value_from else {
        return SpecValue::Text(variable.value.clone().unwrap_or_default());
    };
    match source {
        EnvVarSource {
            field_ref: Some(field),
            ..
        } => {
            let known = field_of(pod, &field.field_path).map(SpecValue::Field);
            known.unwrap_or_else(|| SpecValue::Elsewhere(field.field_path.clone()))
        }
        EnvVarSource {
            secret_key_ref: Some(secret),
            ..
        } => SpecValue::Elsewhere(format!("Secret {}", secret.name)),
        EnvVarSource {
            config_map_key_ref: Some(map),
            ..
        } => SpecValue::Elsewhere(format!("ConfigMap {}", map.name)),
        _ => SpecValue::Elsewhere("known to its node alone".into()),
    }
}

/// A field that a variable may name (kubernetes.io/docs/concepts/workloads/pods/downward-api).
fn field_of(pod: &Pod, path: &str) -> Option<String> {
    let keyed = |map: &str| {
        let key = path.strip_prefix(map)?.strip_prefix("['")?;
        key.strip_suffix("']")
    };
    if let Some(key) = keyed("metadata.labels") {
        return Some(pod.labels().get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Some(pod.annotations().get(key).cloned().unwrap_or_default());
    }
    let status = pod.status.as_ref();
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => Some(node(pod).to_owned()),
        "spec.serviceAccountName" => pod.spec.as_ref()?.service_account_name.clone(),
        "status.hostIP" => status?.host_ip.clone(),
        "status.podIP" => status?.pod_ip.clone(),
        "status.podIPs" => {
            let ips = status?.pod_ips.iter().flatten().map(|it| it.ip.as_str());
            Some(ips.collect::<Vec<_>>().join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tp_core::{environment::rebuild::rebuild, intercept::workload::WorkloadKind};

    use super::*;

    fn web() -> Found {
        Found {
            kind: WorkloadKind::Deployment,
            name: "web".into(),
            owner: None,
            selector: None,
            labels: super::super::Labels::new(),
            spec: k8s_openapi::api::core::v1::PodSpec::default(),
        }
    }

    fn wanted(container: Option<&str>) -> WantedContainer {
        WantedContainer {
            namespace: "shop".into(),
            workload: "web".parse().unwrap(),
            container: container.map(str::to_owned),
            otherwise: None,
            pod: None,
        }
    }

    fn pod(name: &str, ready: &str) -> Value {
        let status = |name: &str| {
            json!({
                "name": name, "containerID": format!("containerd://{name}-id"),
                "state": {"running": {}},
                "image": "", "imageID": "", "ready": true, "restartCount": 0,
            })
        };
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "node1",
                "initContainers": [
                    {"name": "first", "image": ""},
                    {"name": "proxy", "image": "", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "app", "image": ""}, {"name": "side", "image": ""}],
            },
            "status": {
                "podIP": "10.244.1.7",
                "conditions": [{"type": "Ready", "status": ready}],
                "containerStatuses": [status("app"), status("side")],
                "initContainerStatuses": [status("proxy")],
            },
        })
    }

    fn read(pods: &[Value]) -> Vec<Pod> {
        let pods = pods.iter().cloned();

        pods.map(|pod| serde_json::from_value(pod).unwrap())
            .collect()
    }

    fn refused(pods: &[Value], wanted: &WantedContainer) -> String {
        match choose(&web(), read(pods), wanted).unwrap_err() {
            FindError::NotFound(reason) => reason,
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn a_pod_that_is_ready_comes_first_and_one_that_runs_will_do() {
        let (first, second) = (pod("web-1", "False"), pod("web-2", "True"));
        let found = choose(&web(), read(&[first.clone(), second]), &wanted(None)).unwrap();
        assert_eq!((&*found.pod, &*found.node), ("web-2", "node1"));
        assert_eq!((&*found.container, &*found.id), ("app", "app-id"));

        let found = choose(&web(), read(std::slice::from_ref(&first)), &wanted(None));
        let found = found.unwrap();
        assert_eq!(found.pod, "web-1");
        let mut leaving = first.clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(refused(&[leaving], &wanted(None)).contains("no pods"));
        let mut waiting = first;
        waiting["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}});
        assert!(refused(&[waiting], &wanted(None)).contains("describe pod web-1"));
    }

    #[test]
    fn the_container_is_the_named_one_then_the_annotated_then_that_of_the_port_then_the_first() {
        let found = |pod: &Value, wanted: &WantedContainer| {
            let found = choose(&web(), read(std::slice::from_ref(pod)), wanted);
            found.unwrap().container
        };
        let mut pod = pod("web-1", "True");
        let mut of_port = wanted(None);
        of_port.otherwise = Some("side".into());
        assert_eq!(found(&pod, &wanted(None)), "app");
        assert_eq!(found(&pod, &of_port), "side");

        pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "proxy"});
        assert_eq!(found(&pod, &of_port), "proxy");
        assert_eq!(found(&pod, &wanted(Some("side"))), "side");
        // It has ended.
        let reason = refused(&[pod], &wanted(Some("first")));
        assert_eq!(
            reason,
            "pod web-1 has no container first: it has app, side, proxy"
        );
    }

    #[test]
    fn a_pod_that_is_named_is_the_only_one() {
        let pods = [pod("web-1", "True"), pod("web-2", "True")];
        let mut wanted = wanted(None);
        wanted.pod = Some("web-2".into());
        assert_eq!(choose(&web(), read(&pods), &wanted).unwrap().pod, "web-2");

        wanted.pod = Some("web-3".into());
        assert_eq!(refused(&pods, &wanted), "deployment/web has no pod web-3");
    }

    #[test]
    fn the_specification_gives_what_it_holds_and_names_the_rest() {
        let mut pod = pod("web-1", "True");
        pod["spec"]["containers"][0]["envFrom"] = json!([
            {"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}},
        ]);
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        pod["spec"]["containers"][0]["env"] = json!([
            {"name": "EMPTY"},
            {"name": "IP", "valueFrom": field("status.podIP")},
            {"name": "APP", "valueFrom": field("metadata.labels['app']")},
            {"name": "URL", "value": "http://$(IP)/$(APP)"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ]);

        let found = choose(&web(), read(&[pod]), &wanted(None)).unwrap();
        let rebuilt = rebuild(&found.spec);

        assert_eq!(
            rebuilt.environment.to_environ(),
            b"EMPTY=\0IP=10.244.1.7\0APP=web\0URL=http://10.244.1.7/web\0"
        );
        assert_eq!(
            rebuilt.missing,
            [
                "* (ConfigMap settings, Secret keys)",
                "KEY (Secret db)",
                "CPU (known to its node alone)"
            ]
        );
    }
}

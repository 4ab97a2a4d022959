//! Finds, on request, the workload that a user names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::Job,
        core::v1::{Container, Pod, PodSpec, PodTemplateSpec, Service, ServicePort},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    core::{NamespaceResourceScope, Selector},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tp_core::intercept::{
    matching::{
        DeclaredContainer, DeclaredPort, Ports, Protocol, SelectedPort, SelectingService,
        TargetPort,
    },
    workload::{WorkloadKind, WorkloadName},
};

use super::workloads;
use crate::model::{FindError, FoundPod, FoundWorkload};
pub(crate) use container::find_container;

mod container;

const TIMEOUT: Duration = Duration::from_secs(10);
/// A pod, its ReplicaSet, and its Deployment.
const MAX_OWNERS: usize = 3;
/// Names in a message.
const MAX_NAMES: usize = 10;

type Labels = BTreeMap<String, String>;

/// An object that runs pods.
struct Found {
    kind: WorkloadKind,
    name: String,
    /// The workload that made it.
    owner: Option<WorkloadName>,
    selector: Option<LabelSelector>,
    labels: Labels,
    spec: PodSpec,
}

impl Found {
    fn of(
        kind: WorkloadKind,
        metadata: &ObjectMeta,
        selector: Option<LabelSelector>,
        template: Option<PodTemplateSpec>,
    ) -> Self {
        let template = template.unwrap_or_default();
        let labels = template.metadata.and_then(|it| it.labels);
        Self {
            kind,
            name: metadata.name.clone().unwrap_or_default(),
            owner: owner(metadata),
            selector,
            labels: labels.unwrap_or_default(),
            spec: template.spec.unwrap_or_default(),
        }
    }

    fn title(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }

    /// How its pods are listed, with others perhaps; `None` if it can have none.
    fn pods(&self) -> Option<ListParams> {
        if self.kind == WorkloadKind::Pod {
            let named = format!("metadata.name={}", self.name);
            return Some(ListParams::default().fields(&named));
        }
        let selector = Selector::try_from(self.selector.clone()?).ok()?;

        (!selector.selects_all()).then(|| ListParams::default().labels_from(&selector))
    }

    /// Whether it is this one that controls a pod with its labels.
    fn has(&self, pod: &Pod) -> bool {
        let Some(owner) = owner(&pod.metadata) else {
            return self.kind == WorkloadKind::Pod;
        };
        match self.kind {
            WorkloadKind::Pod => true,
            WorkloadKind::Deployment => owner.kind == Some(WorkloadKind::ReplicaSet),
            kind => owner.kind == Some(kind) && owner.name == self.name,
        }
    }
}

/// The workload of this name in the namespace.
pub(crate) async fn find(
    client: Client,
    namespace: String,
    name: WorkloadName,
) -> Result<FoundWorkload, FindError> {
    let search = Search { client, namespace };

    timeout(TIMEOUT, search.find(name))
        .await
        .unwrap_or_else(|_| {
            let reason = "the API server did not find the workload in time";
            Err(FindError::Unavailable(reason.into()))
        })
}

struct Search {
    client: Client,
    namespace: String,
}

impl Search {
    async fn find(&self, wanted: WorkloadName) -> Result<FoundWorkload, FindError> {
        let services: Vec<Service> = self.list(&ListParams::default()).await?;
        let mut found = self.named(&wanted, &services).await?;
        // Agents know pods by their outermost workload.
        for _ in 0..MAX_OWNERS {
            let Some(owner) = &found.owner else { break };
            let Some(outer) = self.one(owner).await? else {
                break;
            };
            found = outer;
        }
        let ready = self.ready(&found).await?;

        Ok(FoundWorkload {
            kind: format!("{:?}", found.kind),
            ready,
            ports: Ports {
                workload: found.title(),
                containers: containers(&found.spec),
                services: services
                    .iter()
                    .filter(|service| selects(service, &found.labels))
                    .map(selecting)
                    .collect(),
            },
            name: found.name,
        })
    }

    async fn named(&self, wanted: &WorkloadName, services: &[Service]) -> Result<Found, FindError> {
        if wanted.kind != Some(WorkloadKind::Service) {
            let mut all = Vec::new();
            for kind in WorkloadKind::all().filter(|it| wanted.kind.is_none_or(|kind| kind == *it))
            {
                let name = wanted.name.clone();
                let name = WorkloadName {
                    kind: Some(kind),
                    name,
                };
                all.extend(self.one(&name).await?);
            }
            if all.len() > 1 {
                let titles: Vec<String> = all.iter().map(Found::title).collect();
                return Err(ambiguous(&wanted.name, &titles));
            }
            if let Some(found) = all.pop() {
                return Ok(found);
            }
        }
        let service = services
            .iter()
            .filter(|_| matches!(wanted.kind, None | Some(WorkloadKind::Service)))
            .find(|service| service.name_any() == wanted.name);
        match service {
            Some(service) => self.behind(service).await,
            None => Err(self.not_found(wanted, services).await),
        }
    }

    /// The workload whose pods the service selects.
    async fn behind(&self, service: &Service) -> Result<Found, FindError> {
        let name = service.name_any();
        let selector = service.spec.clone().and_then(|spec| spec.selector);
        let selector = selector.unwrap_or_default();
        if selector.is_empty() {
            let reason = format!("service/{name} selects no pods: name a workload");
            return Err(FindError::NotFound(reason));
        }
        let pods: Vec<Pod> = self.list(&labelled(&selector)).await?;
        let mut all: BTreeMap<String, Found> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for pod in pods {
            let mut found = of_pod(pod);
            // Most pods have an owner that another one had.
            if found
                .owner
                .as_ref()
                .is_some_and(|it| !known.insert(it.to_string()))
            {
                continue;
            }
            for _ in 0..MAX_OWNERS {
                let Some(owner) = &found.owner else { break };
                let Some(outer) = self.one(owner).await? else {
                    break;
                };
                found = outer;
            }
            let title = found
                .owner
                .as_ref()
                .map_or_else(|| found.title(), ToString::to_string);
            all.entry(title).or_insert(found);
            if all.len() > MAX_NAMES {
                break;
            }
        }
        if all.len() > 1 {
            let titles: Vec<String> = all.into_keys().collect();
            return Err(ambiguous(&format!("service/{name}"), &titles));
        }

        all.into_values().next().ok_or_else(|| {
            FindError::NotFound(format!("service/{name} selects no pods: name a workload"))
        })
    }

    /// By kind and name.
    async fn one(&self, wanted: &WorkloadName) -> Result<Option<Found>, FindError> {
        let Some(kind) = wanted.kind else {
            return Ok(None);
        };
        let named = ListParams::default().fields(&format!("metadata.name={}", wanted.name));
        let found = match kind {
            WorkloadKind::Deployment => self.first::<Deployment>(&named).await?.map(|it| {
                let spec = it.spec.unwrap_or_default();
                Found::of(kind, &it.metadata, Some(spec.selector), Some(spec.template))
            }),
            WorkloadKind::StatefulSet => self.first::<StatefulSet>(&named).await?.map(|it| {
                let spec = it.spec.unwrap_or_default();
                Found::of(kind, &it.metadata, Some(spec.selector), Some(spec.template))
            }),
            WorkloadKind::DaemonSet => self.first::<DaemonSet>(&named).await?.map(|it| {
                let spec = it.spec.unwrap_or_default();
                Found::of(kind, &it.metadata, Some(spec.selector), Some(spec.template))
            }),
            WorkloadKind::ReplicaSet => self.first::<ReplicaSet>(&named).await?.map(|it| {
                let spec = it.spec.unwrap_or_default();
                Found::of(kind, &it.metadata, Some(spec.selector), spec.template)
            }),
            WorkloadKind::Job => self.first::<Job>(&named).await?.map(|it| {
                let spec = it.spec.unwrap_or_default();
                Found::of(kind, &it.metadata, spec.selector, Some(spec.template))
            }),
            WorkloadKind::Pod => self.first::<Pod>(&named).await?.map(of_pod),
            WorkloadKind::Service => None,
        };

        Ok(found)
    }

    async fn pods(&self, found: &Found) -> Result<Vec<Pod>, FindError> {
        let Some(params) = found.pods() else {
            return Ok(Vec::new());
        };
        let mut pods: Vec<Pod> = self.list(&params).await?;
        pods.retain(|pod| found.has(pod));

        Ok(pods)
    }

    async fn ready(&self, found: &Found) -> Result<Vec<FoundPod>, FindError> {
        let pods = self.pods(found).await?;
        let ready = pods.iter().filter(|pod| is_ready(pod));
        let ready = ready.map(|pod| FoundPod {
            name: pod.name_any(),
            node: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default(),
        });

        Ok(ready.collect())
    }

    async fn not_found(&self, wanted: &WorkloadName, services: &[Service]) -> FindError {
        let namespace = &self.namespace;
        let listed = workloads::list(self.client.clone(), namespace.clone()).await;
        let workloads = listed.unwrap_or_default();
        let workloads = workloads
            .iter()
            .map(|it| format!("{}/{}", it.kind.to_ascii_lowercase(), it.name));
        let services = services
            .iter()
            .map(|it| format!("service/{}", it.name_any()));
        let names: Vec<String> = workloads.chain(services).take(MAX_NAMES).collect();
        let hint = match names.as_slice() {
            [] => "there is none at all".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };

        FindError::NotFound(format!(
            "namespace {namespace} has no workload {wanted}: {hint}"
        ))
    }

    async fn first<K>(&self, params: &ListParams) -> Result<Option<K>, FindError>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned,
        K: std::fmt::Debug,
        K::DynamicType: Default,
    {
        Ok(self.list(params).await?.into_iter().next())
    }

    async fn list<K>(&self, params: &ListParams) -> Result<Vec<K>, FindError>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned,
        K: std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let listed = api.list(params).await.map_err(|error| {
            FindError::Unavailable(format!("the API server cannot find the workload: {error}"))
        })?;

        Ok(listed.items)
    }
}

fn ambiguous(name: &str, titles: &[String]) -> FindError {
    FindError::Ambiguous(format!(
        "{name} may mean {}: name one of them as KIND/NAME",
        titles.join(" or ")
    ))
}

fn labelled(selector: &Labels) -> ListParams {
    let terms: Vec<String> = selector
        .iter()
        .map(|(key, it)| format!("{key}={it}"))
        .collect();

    ListParams::default().labels(&terms.join(","))
}

/// The owner, if it is of a kind that has workloads of others beneath it.
fn owner(metadata: &ObjectMeta) -> Option<WorkloadName> {
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    let kind = WorkloadKind::all().find(|kind| format!("{kind:?}") == owner.kind)?;

    Some(WorkloadName {
        kind: Some(kind),
        name: owner.name.clone(),
    })
}

fn of_pod(pod: Pod) -> Found {
    Found {
        kind: WorkloadKind::Pod,
        name: pod.name_any(),
        owner: owner(&pod.metadata),
        selector: None,
        labels: pod.metadata.labels.unwrap_or_default(),
        spec: pod.spec.unwrap_or_default(),
    }
}

/// A pod that is about to end is not counted: it is left alone.
fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let status = status.filter(|_| pod.metadata.deletion_timestamp.is_none());
    let mut conditions = status.iter().flat_map(|it| it.conditions.iter().flatten());

    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

fn selects(service: &Service, labels: &Labels) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());

    selector.is_some_and(|selector| {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        !selector.is_empty() && selector.iter().all(has)
    })
}

fn selecting(service: &Service) -> SelectingService {
    let spec = service.spec.as_ref();
    let ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());

    SelectingService {
        name: service.name_any(),
        ports: ports.filter_map(selected_port).collect(),
        is_headless: spec.is_some_and(|it| it.cluster_ip.as_deref() == Some("None")),
    }
}

fn selected_port(port: &ServicePort) -> Option<SelectedPort> {
    let number = u16::try_from(port.port).ok()?;
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => TargetPort::Number(u16::try_from(*number).ok()?),
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
        None => TargetPort::Number(number),
    };

    Some(SelectedPort {
        name: port.name.clone(),
        number,
        target,
        protocol: protocol(port.protocol.as_deref()),
    })
}

fn containers(spec: &PodSpec) -> Vec<DeclaredContainer> {
    let stays = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let staying = spec.init_containers.iter().flatten().filter(stays);

    spec.containers
        .iter()
        .chain(staying)
        .map(declared)
        .collect()
}

fn declared(container: &Container) -> DeclaredContainer {
    let ports = container.ports.iter().flatten().filter_map(|port| {
        Some(DeclaredPort {
            name: port.name.clone(),
            number: u16::try_from(port.container_port).ok()?,
            protocol: protocol(port.protocol.as_deref()),
        })
    });

    DeclaredContainer {
        name: container.name.clone(),
        ports: ports.collect(),
    }
}

fn protocol(text: Option<&str>) -> Protocol {
    match text {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests;

//! Reads a pod of the node.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Pod, PodSpec, PodStatus, Probe},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use tp_agent_api::{MAX_CONTAINERS, MAX_POD_ADDRESSES, PodIds};
use tp_core::intercept::holders::WorkloadKey;

use crate::{facts::PodFacts, probes::is_kubelet};

#[cfg(test)]
mod tests;

const MIRROR: &str = "kubernetes.io/config.mirror";
const ISTIO_SIDECAR: &str = "sidecar.istio.io/status";
const ISTIO_MODE: &str = "istio.io/dataplane-mode";
/// Containers of meshes that take a pod's traffic.
const SIDECARS: [(&str, &str); 2] = [("istio-proxy", "Istio"), ("linkerd-proxy", "Linkerd")];
/// Parts of the names of runtime classes whose pods have a kernel of their own.
const SANDBOXES: [&str; 4] = ["gvisor", "runsc", "kata", "firecracker"];

/// A pod with the ReplicaSet that it is of.
pub(super) struct KnownPod {
    pub(super) facts: PodFacts,
    pub(super) owner: Option<OwnerReplicaSet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerReplicaSet {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A pod with its UID; none that has ended. The kubelet probes from addresses of the node and from
/// `gateways`.
pub(super) fn read(pod: &Pod, gateways: &[IpAddr]) -> Option<(String, KnownPod)> {
    let metadata = &pod.metadata;
    let (uid, name) = (metadata.uid.clone()?, metadata.name.clone()?);
    let namespace = metadata.namespace.clone()?;
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ips = status.pod_ips.iter().flatten().map(|it| it.ip.as_str());
    let addresses: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
    let mirrored = metadata.annotations.as_ref().and_then(|it| it.get(MIRROR));
    let ids = PodIds {
        uid: mirrored.unwrap_or(&uid).clone(),
        containers: running(status),
        addresses: addresses.iter().copied().take(MAX_POD_ADDRESSES).collect(),
    };
    let (workload, owner) = owners(metadata, &namespace, &name);
    let hosts = status.host_ips.iter().flatten().map(|it| it.ip.as_str());
    let hosts = hosts.chain(status.host_ip.as_deref());
    let nodes: BTreeSet<IpAddr> = hosts
        .filter_map(|ip| ip.parse().ok())
        .chain(gateways.iter().copied())
        .collect();
    let created = metadata.creation_timestamp.as_ref();
    let obstacle = obstacle(metadata, spec, status);
    let (probed, http_probed) = probed(spec);

    Some((
        uid,
        KnownPod {
            facts: PodFacts {
                name,
                created: created.map_or(0, |it| it.0.as_second()),
                workloads: workload.into_iter().collect(),
                ids,
                addresses,
                nodes: nodes.into_iter().collect(),
                probed,
                http_probed,
                obstacle,
            },
            owner,
        },
    ))
}

/// The ids of running containers, without the name of the runtime.
fn running(status: &PodStatus) -> Vec<String> {
    let init = status.init_container_statuses.iter().flatten();
    let statuses = status.container_statuses.iter().flatten().chain(init);
    let running = statuses.filter(|it| it.state.as_ref().is_some_and(|it| it.running.is_some()));
    let ids =
        running.filter_map(|it| Some(it.container_id.as_ref()?.split_once("://")?.1.to_owned()));

    ids.take(MAX_CONTAINERS).collect()
}

/// The workload that controls the pod, or that the pod is; and the ReplicaSet, which may have an owner.
fn owners(
    metadata: &ObjectMeta,
    namespace: &str,
    name: &str,
) -> (Option<WorkloadKey>, Option<OwnerReplicaSet>) {
    let key = |kind: &str, name: &str| WorkloadKey {
        namespace: namespace.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let mut references = metadata.owner_references.iter().flatten();
    let Some(owner) = references.find(|it| it.controller == Some(true)) else {
        return (Some(key("Pod", name)), None);
    };
    let group = owner.api_version.split_once('/').map_or("", |it| it.0);
    let replica_set = OwnerReplicaSet {
        uid: owner.uid.clone(),
        namespace: namespace.to_owned(),
        name: owner.name.clone(),
    };
    match (group, owner.kind.as_str()) {
        ("apps", "ReplicaSet") => (Some(key("ReplicaSet", &owner.name)), Some(replica_set)),
        ("apps", kind @ ("StatefulSet" | "DaemonSet")) | ("batch", kind @ "Job") => {
            (Some(key(kind, &owner.name)), None)
        }
        // A static pod, or one of a controller that tp does not know.
        _ => (Some(key("Pod", name)), None),
    }
}

/// Why the pod cannot be redirected.
fn obstacle(metadata: &ObjectMeta, spec: &PodSpec, status: &PodStatus) -> Option<String> {
    if metadata.deletion_timestamp.is_some() {
        return Some("the pod is being deleted".into());
    }
    if spec.host_network == Some(true) {
        return Some(
            "the pod uses the network of its node (hostNetwork), whose ports are not redirected: \
             intercept a workload with a network of its own"
                .into(),
        );
    }
    if let Some(mesh) = mesh(metadata, spec) {
        return Some(format!(
            "the pod is in the mesh of {mesh}, which takes its traffic before it could be redirected: \
             intercept a workload outside of the mesh"
        ));
    }
    let runtime = spec.runtime_class_name.as_deref().unwrap_or_default();
    if SANDBOXES.iter().any(|it| runtime.contains(it)) {
        return Some(format!(
            "the pod runs in a sandbox (runtimeClassName {runtime}), whose network the node does not \
             see: intercept a workload that runs without one"
        ));
    }
    // Its containers may come and go.
    if status.phase.as_deref() != Some("Running") {
        return Some("the pod is not running: its status tells why".into());
    }

    None
}

fn mesh(metadata: &ObjectMeta, spec: &PodSpec) -> Option<&'static str> {
    let sidecars = containers(spec).filter_map(|container| {
        let found = SIDECARS.iter().find(|(name, _)| *name == container.name);
        found.map(|(_, mesh)| *mesh)
    });
    let has = |map: &Option<std::collections::BTreeMap<String, String>>,
               key: &str,
               value: Option<&str>| {
        let found = map.as_ref().and_then(|it| it.get(key));
        found.is_some_and(|found| value.is_none_or(|value| found == value))
    };
    let is_injected = has(&metadata.annotations, ISTIO_SIDECAR, None);
    // The mode may be the namespace's; Istio then notes it at the pod.
    let is_ambient = has(&metadata.labels, ISTIO_MODE, Some("ambient"))
        || has(
            &metadata.annotations,
            "ambient.istio.io/redirection",
            Some("enabled"),
        );

    sidecars
        .chain((is_injected || is_ambient).then_some("Istio"))
        .next()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let init = spec.init_containers.iter().flatten();

    spec.containers.iter().chain(init)
}

/// The ports that the kubelet connects to in ways that cannot be told from others, and those that it
/// only asks by HTTP, by its own name.
fn probed(spec: &PodSpec) -> (BTreeSet<u16>, BTreeSet<u16>) {
    let ports = containers(spec).flat_map(|container| {
        let probes = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        let probes = probes.into_iter().flatten();
        let probes =
            probes.filter_map(|probe| Some((probed_port(probe, container)?, is_known(probe))));
        probes.chain(hooks(container))
    });
    let (http, others): (Vec<_>, Vec<_>) = ports.partition(|(_, is_known)| *is_known);
    let numbers = |ports: Vec<(u16, bool)>| ports.into_iter().map(|(port, _)| port).collect();
    let (mut http, others): (BTreeSet<u16>, BTreeSet<u16>) = (numbers(http), numbers(others));
    http.retain(|port| !others.contains(port));

    (others, http)
}

/// Returns whether the probe can be told from other connections by what it sends.
fn is_known(probe: &Probe) -> bool {
    probe.http_get.as_ref().is_some_and(is_told_by_name)
}

/// The ports that the kubelet asks when a container has started, or is to end, each with whether that
/// can be told from other connections. A hook by TCP is none.
fn hooks(container: &Container) -> impl Iterator<Item = (u16, bool)> {
    let lifecycle = container.lifecycle.iter();
    let hooks = lifecycle.flat_map(|it| [&it.post_start, &it.pre_stop].into_iter().flatten());
    let asked = hooks.filter_map(|hook| hook.http_get.as_ref());

    asked.filter_map(|http| Some((number(&http.port, container)?, is_told_by_name(http))))
}

fn is_told_by_name(http: &HTTPGetAction) -> bool {
    let is_plain = http.scheme.as_ref().is_none_or(|scheme| scheme == "HTTP");
    let mut headers = http.http_headers.iter().flatten();
    let is_renamed = headers.any(|header| {
        header.name.eq_ignore_ascii_case("user-agent") && !is_kubelet(header.value.as_bytes())
    });

    is_plain && !is_renamed
}

fn probed_port(probe: &Probe, container: &Container) -> Option<u16> {
    let tcp = probe.tcp_socket.as_ref().map(|it| &it.port);
    let http = probe.http_get.as_ref().map(|it| &it.port);
    match (tcp.or(http), &probe.grpc) {
        (Some(port), _) => number(port, container),
        (None, Some(grpc)) => u16::try_from(grpc.port).ok(),
        (None, None) => None,
    }
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|it| it.name.as_ref() == Some(name));
            named
                .map(|it| it.container_port)
                .or_else(|| name.parse().ok())?
        }
    };

    u16::try_from(number).ok()
}

/// The gateways of our own pod: the addresses under which its node reaches pods, with many networks.
pub(super) fn gateways() -> Vec<IpAddr> {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();

    gateways_in(&read("route"), &read("ipv6_route"))
}

fn gateways_in(route4: &str, route6: &str) -> Vec<IpAddr> {
    let v4 = route4.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let gateway = Ipv4Addr::from(gateway.to_ne_bytes());
        (destination == "00000000" && !gateway.is_unspecified()).then_some(gateway.into())
    });
    let v6 = route6.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (destination, length) = (fields.next()?, fields.next()?);
        let gateway = Ipv6Addr::from(u128::from_str_radix(fields.nth(2)?, 16).ok()?);
        let is_default = length == "00" && destination.bytes().all(|it| it == b'0');
        (is_default && !gateway.is_unspecified()).then_some(gateway.into())
    });

    v4.chain(v6).collect()
}

//! Kubernetes objects as the model has them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::ResourceExt as _;

use crate::model::{Exposure, Ingress, Node, ObjectName, Pod, Service};

pub(super) fn namespace(namespace: &core::Namespace) -> (String, Option<()>) {
    (namespace.name_any(), Some(()))
}

pub(super) fn service(service: &core::Service) -> (ObjectName, Option<Service>) {
    let spec = service.spec.clone().unwrap_or_default();
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref())
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter_map(|ingress| match (&ingress.ip, &ingress.hostname) {
            (Some(ip), _) => ip.parse().ok().map(Ingress::Address),
            (None, Some(name)) => Some(Ingress::Name(name.clone())),
            (None, None) => None,
        })
        .collect();
    let mut ports = spec.ports.iter().flatten();
    let node_port = ports.find_map(|port| u16::try_from(port.node_port?).ok());
    let converted = Service {
        // "None" of a headless service is no address.
        cluster_ips: addresses(spec.cluster_ips.iter().flatten()),
        exposure: Exposure { ingress, node_port },
    };

    (name(service), Some(converted))
}

/// Pods of the node's network and pods that ended hold no address of their own.
pub(super) fn pod(pod: &core::Pod) -> (ObjectName, Option<Pod>) {
    let on_host = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    let status = pod.status.as_ref();
    let ended = status
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let addresses = addresses(
        status
            .iter()
            .flat_map(|status| status.pod_ips.iter().flatten())
            .map(|ip| &ip.ip),
    );
    let holds = !on_host && !ended && !addresses.is_empty();

    (name(pod), holds.then_some(Pod { addresses }))
}

pub(super) fn node(node: &core::Node) -> (String, Option<Node>) {
    let of_kind = |kind: &str| {
        let status = node.status.iter();
        let all = status.flat_map(|status| status.addresses.iter().flatten());
        addresses(
            all.filter(|address| address.type_ == kind)
                .map(|address| &address.address),
        )
    };
    let pod_networks = node
        .spec
        .iter()
        .flat_map(|spec| spec.pod_cidrs.iter().flatten())
        .filter_map(|network| network.parse::<IpNet>().ok())
        .collect();

    let converted = Node {
        external: of_kind("ExternalIP"),
        internal: of_kind("InternalIP"),
        pod_networks,
    };
    (node.name_any(), Some(converted))
}

pub(super) fn api_server(slice: &EndpointSlice) -> ((), Option<BTreeSet<IpAddr>>) {
    let all = slice.endpoints.iter();
    let found = addresses(all.flat_map(|endpoint| &endpoint.addresses));

    ((), Some(found.into_iter().collect()))
}

fn name(object: &impl kube::ResourceExt) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_headless_service_has_no_address() {
        let object = read(json!({
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIPs": ["None"], "ports": [{"port": 5432}]},
        }));

        let (name, converted) = service(&object);

        assert_eq!(name, ObjectName::new("shop", "db"));
        assert!(converted.unwrap().cluster_ips.is_empty());
    }

    #[test]
    fn a_service_is_exposed_by_load_balancers_and_a_port_of_the_nodes() {
        let object = read(json!({
            "metadata": {"name": "tp-manager-0", "namespace": "tp-system"},
            "spec": {"ports": [{"port": 80}, {"port": 7071, "nodePort": 30071}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.9", "hostname": "not.used"},
                {"hostname": "lb.example.com"},
            ]}},
        }));

        let exposure = service(&object).1.unwrap().exposure;

        let by_name = Ingress::Name("lb.example.com".into());
        let by_address = Ingress::Address("192.0.2.9".parse().unwrap());
        assert_eq!(exposure.ingress, [by_address, by_name]);
        assert_eq!(exposure.node_port, Some(30071));
    }

    #[test]
    fn a_pod_on_the_nodes_network_has_no_address_of_its_own() {
        let object = read(json!({
            "metadata": {"name": "proxy", "namespace": "kube-system"},
            "spec": {"hostNetwork": true, "containers": []},
            "status": {"podIPs": [{"ip": "172.30.0.11"}]},
        }));

        assert_eq!(pod(&object).1, None);
    }

    #[test]
    fn a_pod_that_ended_gives_its_address_back() {
        let object = read(json!({
            "metadata": {"name": "job", "namespace": "shop"},
            "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.244.0.9"}]},
        }));

        assert_eq!(pod(&object).1, None);
    }

    #[test]
    fn a_nodes_names_are_not_its_addresses() {
        let object = read(json!({
            "metadata": {"name": "node1"},
            "spec": {"podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node1"},
                {"type": "InternalIP", "address": "172.30.0.11"},
            ]},
        }));

        let converted = node(&object).1.unwrap();

        assert_eq!(converted.internal.len(), 1);
        assert!(converted.external.is_empty());
        assert_eq!(converted.pod_networks.len(), 1);
    }
}

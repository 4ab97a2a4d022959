//! Converts Kubernetes objects into values of the model.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::ResourceExt as _;

use crate::model::{Exposure, Ingress, Node, ObjectName, Pod, Service, endpoints::Endpoints};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const UNREADABLE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Annotations of nodes in which network plugins record addresses of bridges and tunnels.
const NODE_ANNOTATIONS: [&str; 5] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
];

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
        external_ips: addresses(spec.external_ips.iter().flatten()),
        exposure: Exposure { ingress, node_port },
    };

    (name(service), Some(converted))
}

/// Pods that ended hold no address, and host-network pods only ports of their node.
pub(super) fn pod(pod: &core::Pod) -> (ObjectName, Option<Pod>) {
    let spec = pod.spec.as_ref();
    let on_host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
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
    let identity = Pod {
        uid: pod.uid().unwrap_or_default().into(),
        node: spec
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or_default()
            .into(),
        ..Pod::default()
    };
    let converted = if on_host {
        let containers = spec.iter().flat_map(|spec| &spec.containers);
        let ports: Vec<u16> = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| u16::try_from(port.container_port).ok())
            .collect();
        let at = |address| ports.iter().map(move |port| (address, *port));
        Pod {
            addresses: Vec::new(),
            on_node: addresses.into_iter().flat_map(at).collect(),
            ..identity
        }
    } else {
        Pod {
            addresses,
            ..identity
        }
    };
    let is_reached = !converted.addresses.is_empty() || !converted.on_node.is_empty();
    let holds = !ended && is_reached;

    (name(pod), holds.then_some(converted))
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

    let annotations = node.annotations();
    let tunnels = NODE_ANNOTATIONS
        .iter()
        .filter_map(|key| annotations.get(*key));

    let converted = Node {
        external: of_kind("ExternalIP"),
        internal: of_kind("InternalIP"),
        tunnels: addresses(tunnels),
        pod_networks,
    };
    (node.name_any(), Some(converted))
}

/// The endpoints that connections to a service are sent to.
pub(super) fn endpoints(slice: &EndpointSlice) -> (ObjectName, Option<Endpoints>) {
    let service = slice.labels().get(SERVICE_LABEL);
    // As by kube-proxy: a terminating endpoint gets connections if none is ready.
    let used = slice.endpoints.iter().filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|it| it.ready).unwrap_or(true);
        ready || conditions.and_then(|it| it.serving).unwrap_or(false)
    });
    let ports = slice.ports.as_deref().unwrap_or_default();
    let numbers = ports.iter().map(|port| u16::try_from(port.port?).ok());
    let texts = used.flat_map(|endpoint| &endpoint.addresses);
    // Nodes parse more than RFC 6943 allows: what does not parse here leads to nobody's address.
    let read = |text: &String| text.parse().unwrap_or(UNREADABLE);
    let converted = service.map(|service| Endpoints {
        service: service.clone(),
        addresses: match slice.address_type.as_str() {
            // Nodes send no connections to those.
            "FQDN" => Vec::new(),
            _ => texts.map(read).collect(),
        },
        // A port without a number stands for all.
        ports: numbers.collect::<Option<_>>().unwrap_or_default(),
    });

    (name(slice), converted)
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
        let with = |containers: Value| {
            let object = read(json!({
                "metadata": {"name": "proxy", "namespace": "kube-system"},
                "spec": {"hostNetwork": true, "containers": containers},
                "status": {"podIPs": [{"ip": "172.30.0.11"}]},
            }));
            pod(&object).1
        };

        assert_eq!(with(json!([])), None);
        let declared = with(json!([{"name": "a", "ports": [{"containerPort": 9100}]}])).unwrap();
        assert!(declared.addresses.is_empty());
        assert_eq!(declared.on_node, [("172.30.0.11".parse().unwrap(), 9100)]);
    }

    #[test]
    fn endpoints_are_those_that_connections_are_sent_to() {
        let with = |ports: Value| {
            let object = read(json!({
                "metadata": {"name": "web-x", "namespace": "shop",
                             "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.244.0.7"]},
                    {"addresses": ["10.244.0.8"], "conditions": {"ready": false}},
                    {"addresses": ["10.244.0.9"], "conditions": {"ready": false, "serving": true}},
                ],
                "ports": ports,
            }));
            endpoints(&object)
        };

        let (name, slice) = with(json!([{"port": 80}, {"port": 81}]));

        let slice = slice.unwrap();
        assert_eq!(name, ObjectName::new("shop", "web-x"));
        assert_eq!((slice.service.as_str(), slice.ports), ("web", vec![80, 81]));
        let used: Vec<String> = slice.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(used, ["10.244.0.7", "10.244.0.9"]);
        // Nodes may parse it, as one of their own addresses.
        let object = read(json!({
            "metadata": {"name": "web-y", "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["172.030.0.011"]}],
        }));
        assert_eq!(endpoints(&object).1.unwrap().addresses, [UNREADABLE]);
        // No list of ports, or a port without a number, means all ports.
        assert!(with(json!(null)).1.unwrap().ports.is_empty());
        assert!(with(json!([{"port": 80}, {}])).1.unwrap().ports.is_empty());
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

//! What the model keeps of each kind of object.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    networking::v1::ServiceCIDR,
};

use super::Kept;
use crate::model::{self, Cluster, ObjectName};

impl Kept for Namespace {
    type Key = String;

    fn key(&self) -> Option<String> {
        self.metadata.name.clone()
    }

    fn put(&self, key: String, cluster: &mut Cluster) {
        cluster.namespaces.insert(key);
    }

    fn remove(key: &String, cluster: &mut Cluster) {
        cluster.namespaces.remove(key);
    }

    fn keys(cluster: &Cluster) -> Vec<String> {
        cluster.namespaces.iter().cloned().collect()
    }
}

impl Kept for Service {
    type Key = ObjectName;

    fn key(&self) -> Option<ObjectName> {
        named(self.metadata.namespace.as_ref(), self.metadata.name.as_ref())
    }

    fn put(&self, key: ObjectName, cluster: &mut Cluster) {
        let spec = self.spec.clone().unwrap_or_default();
        let is_external = spec.type_.as_deref() == Some("ExternalName");
        let ports = spec.ports.unwrap_or_default();
        let service = model::Service {
            // "None" of a headless service is no address.
            cluster_ips: addresses(spec.cluster_ips.iter().flatten()),
            external_name: spec.external_name.filter(|_| is_external),
            ports: ports
                .into_iter()
                .filter_map(|port| {
                    Some(model::Port {
                        name: port.name.unwrap_or_default(),
                        protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
                        port: u16::try_from(port.port).ok()?,
                    })
                })
                .collect(),
        };
        cluster.put_service(key, service);
    }

    fn remove(key: &ObjectName, cluster: &mut Cluster) {
        cluster.remove_service(key);
    }

    fn keys(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.services.keys().cloned().collect()
    }
}

impl Kept for Pod {
    type Key = ObjectName;

    fn key(&self) -> Option<ObjectName> {
        named(self.metadata.namespace.as_ref(), self.metadata.name.as_ref())
    }

    fn put(&self, key: ObjectName, cluster: &mut Cluster) {
        let host_network =
            self.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
        let status = self.status.as_ref();
        let is_over = status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        // The address of a finished pod is given to another one.
        let addresses = if is_over { Vec::new() } else { addresses(ips.map(|ip| &ip.ip)) };
        cluster.put_pod(key, model::Pod { addresses, host_network });
    }

    fn remove(key: &ObjectName, cluster: &mut Cluster) {
        cluster.remove_pod(key);
    }

    fn keys(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.pods.keys().cloned().collect()
    }
}

impl Kept for Node {
    type Key = String;

    fn key(&self) -> Option<String> {
        self.metadata.name.clone()
    }

    fn put(&self, key: String, cluster: &mut Cluster) {
        let declared = self.status.as_ref().and_then(|status| status.addresses.clone());
        let declared = declared.unwrap_or_default();
        let of = |kind: &str| {
            addresses(declared.iter().filter(|a| a.type_ == kind).map(|a| &a.address))
        };
        let networks = self.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
        let node = model::Node {
            external: of("ExternalIP"),
            internal: of("InternalIP"),
            pod_networks: parsed(networks.into_iter().flatten()),
        };
        cluster.put_node(key, node);
    }

    fn remove(key: &String, cluster: &mut Cluster) {
        cluster.remove_node(key);
    }

    fn keys(cluster: &Cluster) -> Vec<String> {
        cluster.nodes.keys().cloned().collect()
    }
}

impl Kept for ServiceCIDR {
    type Key = String;

    fn key(&self) -> Option<String> {
        self.metadata.name.clone()
    }

    fn put(&self, key: String, cluster: &mut Cluster) {
        let networks = self.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
        cluster.service_networks.insert(key, parsed(networks.into_iter().flatten()));
    }

    fn remove(key: &String, cluster: &mut Cluster) {
        cluster.service_networks.remove(key);
    }

    fn keys(cluster: &Cluster) -> Vec<String> {
        cluster.service_networks.keys().cloned().collect()
    }
}

fn named(namespace: Option<&String>, name: Option<&String>) -> Option<ObjectName> {
    Some(ObjectName::new(namespace?, name?))
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn parsed<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpNet> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Place;

    fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn apply<K: Kept>(cluster: &mut Cluster, value: serde_json::Value) {
        let object: K = object(value);
        object.put(object.key().unwrap(), cluster);
    }

    #[test]
    fn a_headless_service_has_no_address() {
        let mut cluster = Cluster::default();
        apply::<Service>(
            &mut cluster,
            json!({"metadata": {"namespace": "shop", "name": "cells"},
                   "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 7000}]}}),
        );

        let service = &cluster.services[&ObjectName::new("shop", "cells")];
        assert!(service.cluster_ips.is_empty());
        assert_eq!(service.ports[0].protocol, "TCP");
    }

    #[test]
    fn a_finished_pod_lends_no_address() {
        let mut cluster = Cluster::default();
        let pod = |phase: &str| {
            json!({"metadata": {"namespace": "shop", "name": "job"},
                   "status": {"phase": phase, "podIPs": [{"ip": "10.244.0.8"}]}})
        };
        let address = "10.244.0.8".parse().unwrap();
        apply::<Pod>(&mut cluster, pod("Running"));
        assert_eq!(cluster.place(address), Place::Namespace("shop".into()));

        apply::<Pod>(&mut cluster, pod("Succeeded"));
        assert_ne!(cluster.place(address), Place::Namespace("shop".into()));
    }

    #[test]
    fn a_pod_on_the_host_network_does_not_open_its_node() {
        let mut cluster = Cluster::default();
        apply::<Node>(
            &mut cluster,
            json!({"metadata": {"name": "node1"},
                   "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]}}),
        );
        apply::<Pod>(
            &mut cluster,
            json!({"metadata": {"namespace": "shop", "name": "proxy"}, "spec": {"hostNetwork": true, "containers": []},
                   "status": {"phase": "Running", "podIPs": [{"ip": "172.30.0.11"}]}}),
        );

        assert!(matches!(cluster.place("172.30.0.11".parse().unwrap()), Place::Host(_)));
    }
}

//! The model's values as messages.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use tp_proto::tunnel;

use crate::model::{ObjectName, Port, Service, Workload, table::View};

pub(super) fn address(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

pub(super) fn endpoint(endpoint: SocketAddr) -> tunnel::Endpoint {
    tunnel::Endpoint {
        address: address(endpoint.ip()),
        port: endpoint.port().into(),
    }
}

pub(super) fn service(name: &ObjectName, service: &Service) -> tunnel::Service {
    tunnel::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        cluster_ips: service.cluster_ips.iter().copied().map(address).collect(),
    }
}

pub(super) fn service_name(name: &ObjectName) -> tunnel::ServiceName {
    tunnel::ServiceName {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

/// Namespaces and networks, without services.
pub(super) fn frame(view: &View) -> tunnel::Snapshot {
    let texts = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect();
    tunnel::Snapshot {
        namespaces: view.namespaces.iter().cloned().collect(),
        services: Vec::new(),
        service_networks: texts(&view.service_networks),
        pod_networks: texts(&view.pod_networks),
        services_are_covered: view.services_are_covered,
    }
}

pub(super) fn snapshot(view: &View) -> tunnel::Snapshot {
    let services = view.services.iter();
    tunnel::Snapshot {
        services: services.map(|(name, value)| service(name, value)).collect(),
        ..frame(view)
    }
}

pub(super) fn workload(workload: Workload, namespace: &str) -> tunnel::Workload {
    tunnel::Workload {
        kind: workload.kind.into(),
        name: workload.name,
        namespace: namespace.into(),
        ready: workload.ready,
        desired: workload.desired,
        ports: workload.ports.iter().map(port).collect(),
    }
}

fn port(port: &Port) -> tunnel::WorkloadPort {
    tunnel::WorkloadPort {
        name: port.name.clone(),
        protocol: port.protocol.clone(),
        port: port.port.into(),
    }
}

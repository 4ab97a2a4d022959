//! The model's values as messages.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use tp_proto::tunnel::{self, TableEvent, table_event::Event};

use crate::model::{
    ObjectName, Port, Service, Workload,
    table::{Change, Frame},
};

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

fn service(name: &ObjectName, service: &Service) -> tunnel::Service {
    tunnel::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        cluster_ips: service.cluster_ips.iter().copied().map(address).collect(),
    }
}

fn service_name(name: &ObjectName) -> tunnel::ServiceName {
    tunnel::ServiceName {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

/// Namespaces and networks, without services.
fn frame(frame: Frame) -> tunnel::Snapshot {
    let texts = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect();
    tunnel::Snapshot {
        namespaces: frame.namespaces.into_iter().collect(),
        services: Vec::new(),
        service_networks: texts(&frame.service_networks),
        pod_networks: texts(&frame.pod_networks),
        services_are_covered: frame.services_are_covered,
        services_follow: frame.services_follow,
    }
}

pub(super) fn change(change: Change) -> TableEvent {
    let event = match change {
        Change::Snapshot(all, services) => Event::Snapshot(tunnel::Snapshot {
            services: services
                .iter()
                .map(|(name, it)| service(name, it))
                .collect(),
            ..frame(all)
        }),
        Change::Frame(new) => Event::Replaced(frame(new)),
        Change::Applied(name, new) => Event::ServiceApplied(service(&name, &new)),
        Change::Removed(name) => Event::ServiceRemoved(service_name(&name)),
    };

    TableEvent { event: Some(event) }
}

pub(super) fn workload(
    workload: Workload,
    namespace: &str,
    intercepts: Vec<tunnel::HeldPort>,
) -> tunnel::Workload {
    tunnel::Workload {
        kind: workload.kind.into(),
        name: workload.name,
        namespace: namespace.into(),
        ready: workload.ready,
        desired: workload.desired,
        ports: workload.ports.iter().map(port).collect(),
        intercepts,
    }
}

fn port(port: &Port) -> tunnel::WorkloadPort {
    tunnel::WorkloadPort {
        name: port.name.clone(),
        protocol: port.protocol.clone(),
        port: port.port.into(),
    }
}

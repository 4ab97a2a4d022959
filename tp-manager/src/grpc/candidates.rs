//! Where this replica may be reached by UDP, best first.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};
use tp_proto::{crd::UDP_PORT, tunnel::Endpoint};

use super::{Replica, wire};
use crate::model::{Ingress, Model, ObjectName, SharedModel};

/// More are not worth the client's probes.
const MAX_CANDIDATES: usize = 8;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn candidates(replica: &Replica, model: &SharedModel) -> Vec<Endpoint> {
    let (mut found, names) = known(replica, &model.read());
    for name in names {
        let looked_up = timeout(LOOKUP_TIMEOUT, lookup_host((name.as_str(), UDP_PORT))).await;
        match looked_up {
            Ok(Ok(addresses)) => found.extend(addresses),
            Ok(Err(error)) => tracing::debug!(%error, "A load balancer's name has no address"),
            Err(_) => tracing::debug!("Looking a load balancer's name up took too long"),
        }
    }
    found.truncate(MAX_CANDIDATES);

    found.into_iter().map(wire::endpoint).collect()
}

/// Addresses, and the names of load balancers that have none.
fn known(replica: &Replica, model: &Model) -> (Vec<SocketAddr>, Vec<String>) {
    let own = ObjectName::new(&replica.namespace, &replica.pod);
    let Some(service) = model.service(&own) else {
        return (Vec::new(), Vec::new());
    };
    let mut found = Vec::new();
    let mut names = Vec::new();
    for ingress in &service.exposure.ingress {
        match ingress {
            Ingress::Address(address) => found.push(SocketAddr::new(*address, UDP_PORT)),
            Ingress::Name(name) => names.push(name.clone()),
        }
    }
    if let Some(port) = service.exposure.node_port {
        let addresses = node_addresses(replica, model);
        found.extend(addresses.into_iter().map(|ip| SocketAddr::new(ip, port)));
    }

    (found, names)
}

/// Those that the internet knows before those of the cluster's own network; within each, the node
/// of this pod, which saves a hop.
fn node_addresses(replica: &Replica, model: &Model) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for external in [true, false] {
        for own in [true, false] {
            for (name, node) in model.nodes() {
                if (name == replica.node) == own {
                    let of_kind = if external {
                        &node.external
                    } else {
                        &node.internal
                    };
                    addresses.extend_from_slice(of_kind);
                }
            }
        }
    }

    addresses
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::{
        grpc::{Resolver, Workloads},
        model::{Exposure, Node, Service, Update, Workload},
    };

    struct None;

    impl Workloads for None {
        fn list(&self, _: String) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
    }

    fn replica() -> Replica {
        Replica {
            pod: "tp-manager-0".into(),
            namespace: "tp-system".into(),
            node: "node2".into(),
            resolver: Resolver::from_conf(""),
            workloads: Box::new(None),
        }
    }

    fn node(external: &[&str], internal: &str) -> Node {
        Node {
            external: external.iter().map(|text| text.parse().unwrap()).collect(),
            internal: vec![internal.parse().unwrap()],
            pod_networks: Vec::new(),
        }
    }

    fn model(ingress: Vec<Ingress>) -> Model {
        let mut model = Model::default();
        let nodes = [
            ("node1", node(&["192.0.2.1"], "172.30.0.11")),
            ("node2", node(&[], "172.30.0.12")),
        ];
        for (name, node) in nodes {
            model.update_nodes(Update::Applied(name.into(), node));
        }
        let service = Service {
            cluster_ips: Vec::new(),
            exposure: Exposure {
                ingress,
                node_port: Some(30000),
            },
        };
        let name = ObjectName::new("tp-system", "tp-manager-0");
        model.update_services(Update::Applied(name, service));
        model
    }

    #[test]
    fn external_addresses_come_first_then_the_own_node() {
        let (found, _) = known(&replica(), &model(Vec::new()));

        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["192.0.2.1:30000", "172.30.0.12:30000", "172.30.0.11:30000"]
        );
    }

    #[test]
    fn a_load_balancer_is_asked_before_any_node() {
        let ingress = vec![
            Ingress::Address("192.0.2.9".parse().unwrap()),
            Ingress::Name("lb.example.com".into()),
        ];

        let (found, names) = known(&replica(), &model(ingress));

        assert_eq!(found[0].to_string(), "192.0.2.9:7071");
        assert_eq!(names, ["lb.example.com"]);
    }

    #[test]
    fn a_replica_that_is_not_exposed_has_no_candidates() {
        let (found, names) = known(&replica(), &Model::default());

        assert!(found.is_empty() && names.is_empty());
    }
}

//! The addresses of this replica for UDP, best first.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    net::lookup_host,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tp_proto::{crd::UDP_PORT, tunnel::Endpoint};

use super::{Replica, wire};
use crate::model::{Ingress, Model, ObjectName, SharedModel};

/// More are not worth the client's probes.
const MAX_CANDIDATES: usize = 8;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Addresses of a load balancer's name come and go; cloud providers keep them for a minute.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(60);
/// Changes are gathered: most of them concern no candidate.
const GATHER_DELAY: Duration = Duration::from_secs(1);

/// How this replica is exposed at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exposed {
    /// Of load balancers.
    addresses: Vec<SocketAddr>,
    /// Names of load balancers without an address.
    names: Vec<String>,
    /// On nodes, with public addresses.
    external: Vec<SocketAddr>,
    /// On nodes, with internal addresses.
    internal: Vec<SocketAddr>,
}

pub(super) async fn candidates(replica: &Replica, model: &SharedModel) -> Vec<Endpoint> {
    let exposed = Exposed::of(replica, &model.read());

    exposed.candidates().await
}

/// The current candidates, and again whenever they change.
pub(super) fn changes(
    replica: Arc<Replica>,
    model: SharedModel,
) -> impl Stream<Item = Vec<Endpoint>> + Send {
    let watch = Watch {
        changes: model.changes(),
        replica,
        model,
        exposed: None,
        look_up_at: Instant::now(),
        last_sent: None,
    };

    stream::unfold(watch, |mut watch| async move {
        let candidates = watch.next().await;
        Some((candidates, watch))
    })
}

struct Watch {
    changes: watch::Receiver<u64>,
    replica: Arc<Replica>,
    model: SharedModel,
    exposed: Option<Exposed>,
    look_up_at: Instant,
    last_sent: Option<Vec<Endpoint>>,
}

impl Watch {
    async fn next(&mut self) -> Vec<Endpoint> {
        loop {
            let has_names = self.exposed.as_ref().is_some_and(|it| !it.names.is_empty());
            if self.exposed.is_some() {
                tokio::select! {
                    Ok(()) = self.changes.changed() => sleep(GATHER_DELAY).await,
                    () = sleep_until(self.look_up_at), if has_names => {}
                    else => std::future::pending().await,
                }
            }
            self.changes.mark_unchanged();
            let exposed = Exposed::of(&self.replica, &self.model.read());
            let is_due = has_names && Instant::now() >= self.look_up_at;
            if !is_due && self.exposed.as_ref() == Some(&exposed) {
                continue;
            }
            self.look_up_at = Instant::now() + LOOKUP_INTERVAL;
            let candidates = exposed.candidates().await;
            self.exposed = Some(exposed);
            if self.last_sent.as_ref() != Some(&candidates) {
                self.last_sent = Some(candidates.clone());
                return candidates;
            }
        }
    }
}

impl Exposed {
    fn of(replica: &Replica, model: &Model) -> Self {
        let mut exposed = Self::default();
        let own = ObjectName::new(&replica.namespace, &replica.pod);
        let Some(service) = model.service(&own) else {
            return exposed;
        };
        for ingress in &service.exposure.ingress {
            match ingress {
                Ingress::Address(address) => {
                    exposed.addresses.push(SocketAddr::new(*address, UDP_PORT));
                }
                Ingress::Name(name) => exposed.names.push(name.clone()),
            }
        }
        if let Some(port) = service.exposure.node_port {
            let at = |ip: &IpAddr| SocketAddr::new(*ip, port);
            // The node of this pod saves a hop.
            for own in [true, false] {
                let nodes = model.nodes();
                for (_, node) in nodes.filter(|(name, _)| (*name == replica.node) == own) {
                    exposed.external.extend(node.external.iter().map(at));
                    exposed.internal.extend(node.internal.iter().map(at));
                }
            }
            exposed.external.truncate(MAX_CANDIDATES);
            exposed.internal.truncate(MAX_CANDIDATES);
        }

        exposed
    }

    async fn candidates(&self) -> Vec<Endpoint> {
        let mut balancers = self.addresses.clone();
        for name in &self.names {
            let looked_up = timeout(LOOKUP_TIMEOUT, lookup_host((name.as_str(), UDP_PORT))).await;
            match looked_up {
                Ok(Ok(addresses)) => balancers.extend(addresses),
                Ok(Err(error)) => tracing::debug!(%error, "Load balancer's name has no address"),
                Err(_) => tracing::debug!("Looking a load balancer's name up took too long"),
            }
        }

        self.best(balancers)
            .into_iter()
            .map(wire::endpoint)
            .collect()
    }

    /// Load balancers, then public addresses, then internal ones. If there are too many, each kind
    /// gets its share: a client behind a VPN reaches the last only.
    fn best(&self, balancers: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let mut found = Vec::with_capacity(MAX_CANDIDATES);
        let kinds = [&balancers, &self.external, &self.internal];
        for (index, kind) in kinds.iter().enumerate() {
            let free = MAX_CANDIDATES - found.len();
            let others: usize = kinds[index + 1..].iter().map(|it| it.len()).sum();
            let share = free - others.min(free / 2);
            found.extend(kind.iter().take(share));
        }

        found
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::{StreamExt as _, future::BoxFuture};
    use tp_core::intercept::workload::WorkloadName;

    use super::*;
    use crate::{
        grpc::{Resolver, Workloads, tests::nothing_else},
        intercepts::taking::{EndIntercept, HeldPorts},
        model::{Exposure, FindError, FoundWorkload, Node, Service, Update, Workload},
    };

    struct NoWorkloads;

    impl Workloads for NoWorkloads {
        fn find(
            &self,
            _: String,
            _: WorkloadName,
        ) -> BoxFuture<'static, Result<FoundWorkload, FindError>> {
            Box::pin(std::future::ready(Ok(FoundWorkload::default())))
        }

        fn list(&self, _: String) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
    }

    impl EndIntercept for NoWorkloads {
        fn end(&self, _: HeldPorts, _: String) -> BoxFuture<'static, Result<(), String>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    fn replica() -> Replica {
        Replica {
            pod: "tp-manager-0".into(),
            namespace: "tp-system".into(),
            node: "node2".into(),
            resolver: Resolver::from_conf(""),
            workloads: Box::new(NoWorkloads),
            endings: Box::new(NoWorkloads),
            environments: nothing_else().environments,
        }
    }

    fn node(external: &[&str], internal: &str) -> Node {
        Node {
            external: external.iter().map(|text| text.parse().unwrap()).collect(),
            internal: vec![internal.parse().unwrap()],
            ..Node::default()
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
            exposure: Exposure {
                ingress,
                node_port: Some(30000),
            },
            ..Service::default()
        };
        let name = ObjectName::new("tp-system", "tp-manager-0");
        model.update_services(Update::Applied(name, service));
        model
    }

    #[test]
    fn external_addresses_come_first_then_the_own_node() {
        let exposed = Exposed::of(&replica(), &model(Vec::new()));
        let found = exposed.best(Vec::new());

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

        let exposed = Exposed::of(&replica(), &model(ingress));
        let found = exposed.best(exposed.addresses.clone());

        assert_eq!(found[0].to_string(), "192.0.2.9:7071");
        assert_eq!(exposed.names, ["lb.example.com"]);
    }

    #[test]
    fn of_many_addresses_each_kind_gets_its_share() {
        let all = |network: &str| -> Vec<SocketAddr> {
            let at = |n| format!("{network}.{n}:30000").parse().unwrap();
            (1..=9).map(at).collect()
        };
        let exposed = Exposed {
            external: all("192.0.2"),
            internal: all("10.0.0"),
            ..Exposed::default()
        };
        let kinds = |found: Vec<SocketAddr>| {
            ["198.51.100", "192.0.2", "10.0.0"].map(|network| {
                let is_of = |it: &&SocketAddr| it.to_string().starts_with(network);
                found.iter().filter(is_of).count()
            })
        };

        assert_eq!(kinds(exposed.best(Vec::new())), [0, 4, 4]);
        assert_eq!(kinds(exposed.best(all("198.51.100"))), [4, 2, 2]);
        assert_eq!(
            kinds(exposed.best(all("198.51.100")[..1].to_vec())),
            [1, 4, 3]
        );
    }

    #[tokio::test]
    async fn candidates_are_told_once_and_again_when_they_change() {
        let shared = SharedModel::new();
        let mut told = pin!(changes(Arc::new(replica()), shared.clone()));
        let mut next = async || {
            timeout(10 * GATHER_DELAY, told.next())
                .await
                .unwrap()
                .unwrap()
        };
        assert_eq!(next().await, []);

        shared.update(|it| *it = model(Vec::new()));
        let first = next().await;
        assert_eq!(first.len(), 3);

        // Concerns no candidate.
        shared.update(|it| it.update_namespaces(Update::Applied("new".into(), ())));
        shared.update(|it| it.update_nodes(Update::Removed("node1".into())));
        assert_eq!(next().await, [first[1].clone()]);
    }

    #[test]
    fn a_replica_that_is_not_exposed_has_no_candidates() {
        let exposed = Exposed::of(&replica(), &Model::default());

        assert_eq!(exposed, Exposed::default());
    }
}

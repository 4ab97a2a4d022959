//! Whose an address is.

use std::{net::IpAddr, time::Duration};

use tokio::time::timeout;

use super::{Model, ObjectName, SharedModel, networks};

/// How long an address may be in use before the API server's watches say whose it is.
const SETTLED: Duration = Duration::from_secs(1);

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A service or a pod of this namespace.
    Namespace(String),
    /// A service of this namespace that leads out of it, and to what of whom.
    Service {
        namespace: String,
        leads_to: Vec<(IpAddr, Self)>,
    },
    /// The API server.
    ApiServer,
    /// A node, or a pod that shares its network.
    Node,
    /// Inside the cluster's networks, and nobody's that is known: a node's own address there, or what
    /// has just been given to a pod or a service.
    Unknown,
    /// Outside the cluster's networks.
    External,
    /// Nothing that anybody may reach through a manager: loopback, link-local, metadata.
    Nobody,
}

impl Model {
    /// Whose this address is, most telling first.
    pub(crate) fn owner(&self, address: IpAddr) -> Owner {
        let address = address.to_canonical();
        if networks::is_nobodys(address) {
            return Owner::Nobody;
        }
        if let Some(name) = self.service_of.get(&address) {
            return self.owner_of_service(name);
        }

        self.owner_of_endpoint(address)
    }

    /// The namespace, unless endpoints of the service are somebody else's.
    fn owner_of_service(&self, name: &ObjectName) -> Owner {
        if *name == api_server() {
            return Owner::ApiServer;
        }
        let mut leads_to = Vec::new();
        for slice in self.slices.of(name) {
            for address in &slice.addresses {
                let owner = match self.owner_of_endpoint(address.to_canonical()) {
                    Owner::Namespace(namespace) if namespace == name.namespace => continue,
                    // What is outside of the cluster forbids itself, if it has to.
                    Owner::External => continue,
                    Owner::Node if slice.are_of_pods(*address, &self.on_nodes) => continue,
                    owner => owner,
                };
                leads_to.push((*address, owner));
            }
        }
        let namespace = name.namespace.clone();
        if leads_to.is_empty() {
            return Owner::Namespace(namespace);
        }

        Owner::Service {
            namespace,
            leads_to,
        }
    }

    fn owner_of_endpoint(&self, address: IpAddr) -> Owner {
        if networks::is_nobodys(address) {
            return Owner::Nobody;
        }
        if let Some(name) = self.pod_of.get(&address) {
            return Owner::Namespace(name.namespace.clone());
        }
        let api_server = api_server();
        let mut api_servers = self.slices.of(&api_server);
        if api_servers.any(|slice| slice.addresses.contains(&address)) {
            return Owner::ApiServer;
        }
        if self.node_addresses.contains(&address) || self.is_gateway(address) {
            return Owner::Node;
        }
        let mut ours = self.service_networks.iter().chain(&self.pod_networks);
        if ours.any(|network| network.contains(&address)) {
            return Owner::Unknown;
        }

        Owner::External
    }

    /// Bridges of the common pod networks hold the first address: the node answers there.
    fn is_gateway(&self, address: IpAddr) -> bool {
        self.nodes
            .values()
            .flat_map(|node| &node.pod_networks)
            .any(|network| network.hosts().next() == Some(address))
    }
}

impl SharedModel {
    /// As [`Model::owner`]; what is unknown is given a moment to become known: names and addresses are
    /// told by several watches, and by several replicas.
    pub(crate) async fn settled_owner(&self, address: IpAddr) -> Owner {
        let settled = async {
            loop {
                let updated = self.updated.notified();
                let mut updated = std::pin::pin!(updated);
                // From here on no update is missed.
                updated.as_mut().enable();
                let owner = self.read().owner(address);
                if !owner.is_unsettled() {
                    return owner;
                }
                updated.await;
            }
        };
        let settled = timeout(SETTLED, settled).await;

        settled.unwrap_or_else(|_| self.read().owner(address))
    }
}

impl Owner {
    /// Whether more will be known in a moment.
    fn is_unsettled(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Service { leads_to, .. } => leads_to.iter().any(|(_, it)| it.is_unsettled()),
            _ => false,
        }
    }
}

/// The Service that stands for the API server.
fn api_server() -> ObjectName {
    ObjectName::new("default", "kubernetes")
}

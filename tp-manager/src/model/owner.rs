//! The owner of an address.

use std::{net::IpAddr, sync::LazyLock, time::Duration};

use tokio::time::timeout;

use super::{Model, ObjectName, SharedModel, endpoints::Endpoints, networks};

/// The Service of the API server.
static API_SERVER: LazyLock<ObjectName> =
    LazyLock::new(|| ObjectName::new("default", "kubernetes"));

/// Bounds the wait for the watches to report the owner of an address already in use.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The owner of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A service or a pod of this namespace.
    Namespace(String),
    /// A service of this namespace that leads out of it: its foreign endpoints and their owners.
    Service {
        namespace: String,
        leads_to: Vec<(IpAddr, Self)>,
    },
    /// The API server.
    ApiServer,
    /// A node, or a pod that shares its network.
    Node,
    /// No known owner, in a network of the cluster alone: a node's own address there, or one just
    /// given to a pod or a service.
    Unknown,
    /// No known owner, among addresses of pods or services in a network that the cluster does not
    /// declare: perhaps a neighbour's.
    Neighbour,
    /// Outside the cluster's networks.
    External,
    /// Never reached through a manager: loopback, link-local, metadata.
    Nobody,
}

impl Model {
    /// The most specific owner of this address.
    pub(crate) fn owner(&self, address: IpAddr) -> Owner {
        let address = address.to_canonical();
        if networks::is_nobodys(address) {
            return Owner::Nobody;
        }
        if let Some(name) = self.service_of.get(&address) {
            return self.owner_of_service(name);
        }
        let Some(claims) = self
            .claims
            .get(&address)
            .filter(|claims| !claims.is_empty())
        else {
            return self.owner_of_endpoint(address);
        };
        // Nodes send some ports of it to services, and the others to its owner.
        let mut leads_to = vec![(address, self.owner_of_endpoint(address))];
        leads_to.extend(
            claims
                .iter()
                .map(|name| (address, self.owner_of_service(name))),
        );

        Owner::Service {
            namespace: claims
                .first()
                .map(|name| name.namespace.clone())
                .unwrap_or_default(),
            leads_to,
        }
    }

    /// The service's namespace, unless it has endpoints of other owners.
    fn owner_of_service(&self, name: &ObjectName) -> Owner {
        if *name == *API_SERVER {
            return Owner::ApiServer;
        }
        let present = self.slices.of(name);
        let mut leads_to: Vec<_> = present.flat_map(|it| self.leads_out(name, it)).collect();
        // Only forbidden ones count after their removal: pods come and go.
        let is_forbidden =
            |owner: &Owner| matches!(owner, Owner::Nobody | Owner::ApiServer | Owner::Node);
        let removed = self.slices.removed(name);
        let removed = removed.flat_map(|it| self.leads_out(name, it));
        leads_to.extend(removed.filter(|(_, owner)| is_forbidden(owner)));
        let namespace = name.namespace.clone();
        if leads_to.is_empty() {
            return Owner::Namespace(namespace);
        }

        Owner::Service {
            namespace,
            leads_to,
        }
    }

    /// Endpoints of a service that are not its own namespace's, and their owners.
    fn leads_out<'a>(
        &'a self,
        service: &'a ObjectName,
        slice: &'a Endpoints,
    ) -> impl Iterator<Item = (IpAddr, Owner)> + 'a {
        let namespace = &service.namespace;

        slice.addresses.iter().filter_map(move |address| {
            let owner = self.owner_of_endpoint(address.to_canonical());
            let is_own = match &owner {
                Owner::Namespace(other) => other == namespace,
                // The author of the endpoints could reach as much from a pod.
                Owner::External | Owner::Neighbour => true,
                Owner::Node => slice.are_of_pods(namespace, *address, &self.on_nodes),
                _ => false,
            };

            (!is_own).then_some((*address, owner))
        })
    }

    fn owner_of_endpoint(&self, address: IpAddr) -> Owner {
        if networks::is_nobodys(address) {
            return Owner::Nobody;
        }
        if let Some(name) = self.pod_of.get(&address) {
            return Owner::Namespace(name.namespace.clone());
        }
        let mut api_servers = self.slices.of(&API_SERVER);
        if api_servers.any(|slice| slice.addresses.contains(&address)) {
            return Owner::ApiServer;
        }
        if self.node_addresses.contains(&address) || self.gateways.contains(&address) {
            return Owner::Node;
        }
        let found = self.found_service_networks.as_deref().unwrap_or_default();
        if networks::is_in(address, found) || networks::is_in(address, &self.declared) {
            // The pod has gone, but a service may still lead there for a moment.
            return match self.gone_pods.of(&address).next_back() {
                Some(namespace) => Owner::Namespace(namespace.clone()),
                None => Owner::Unknown,
            };
        }
        let is_covered = |all| networks::is_in(address, all);
        if is_covered(&self.service_networks) || is_covered(&self.pod_networks) {
            return Owner::Neighbour;
        }

        Owner::External
    }
}

impl SharedModel {
    /// [`Model::owner`], after waiting a moment for an unknown owner: names and addresses come from
    /// several watches and replicas.
    pub(crate) async fn settled_owner(&self, address: IpAddr) -> Owner {
        let owner = self.read().owner(address);
        if !owner.is_unsettled() {
            return owner;
        }
        // Without a permit, the current owner is the answer.
        let Ok(_permit) = self.waiting.try_acquire() else {
            return owner;
        };
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
        let settled = timeout(SETTLE_TIMEOUT, settled).await;

        settled.unwrap_or_else(|_| self.read().owner(address))
    }
}

impl Owner {
    /// Returns whether more may be known in a moment.
    fn is_unsettled(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Service { leads_to, .. } => leads_to.iter().any(|(_, it)| it.is_unsettled()),
            _ => false,
        }
    }
}

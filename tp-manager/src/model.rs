//! What the manager knows of the cluster, in its own terms.
//!
//! `index` writes it from Kubernetes objects, `grpc` and `gateway` read it; neither sees the other.

pub(crate) mod endpoints;
pub(crate) mod networks;
mod owner;
pub(crate) mod table;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use endpoints::{Endpoints, Slices};
use ipnet::IpNet;
pub(crate) use owner::Owner;
use tokio::sync::{Notify, watch};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectName {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Empty for headless services and ExternalName.
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) exposure: Exposure,
}

/// How a service is reached from outside the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exposure {
    pub(crate) ingress: Vec<Ingress>,
    /// That of the first port that has one.
    pub(crate) node_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ingress {
    Address(IpAddr),
    Name(String),
}

/// A pod with addresses of its own, or one that shares its node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) addresses: Vec<IpAddr>,
    /// The ports that it declares at its node's addresses.
    pub(crate) on_node: Vec<(IpAddr, u16)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) external: Vec<IpAddr>,
    pub(crate) internal: Vec<IpAddr>,
    pub(crate) pod_networks: Vec<IpNet>,
}

/// Something that runs pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) ready: u32,
    pub(crate) desired: u32,
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

/// One step of a watch.
#[derive(Debug)]
pub(crate) enum Update<K, V> {
    Applied(K, V),
    Removed(K),
    /// Everything there is.
    Replaced(BTreeMap<K, V>),
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    namespaces: BTreeMap<String, ()>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    service_of: HashMap<IpAddr, ObjectName>,
    pods: BTreeMap<ObjectName, Pod>,
    pod_of: HashMap<IpAddr, ObjectName>,
    /// How many pods declare them.
    on_nodes: HashMap<(IpAddr, u16), usize>,
    slices: Slices,
    nodes: BTreeMap<String, Node>,
    node_addresses: BTreeSet<IpAddr>,
    /// None until they are found, and where they cannot be.
    found_service_networks: Option<Vec<IpNet>>,
    service_networks: Vec<IpNet>,
    /// What nodes declare.
    declared: Vec<IpNet>,
    pod_networks: Vec<IpNet>,
    /// Something else than before is to be told to somebody. Most events of a cluster's objects are
    /// about what nobody asks the manager for.
    is_changed: bool,
}

impl Model {
    pub(crate) fn update_namespaces(&mut self, update: Update<String, ()>) {
        self.is_changed |= step(&mut self.namespaces, update);
    }

    pub(crate) fn update_services(&mut self, update: Update<ObjectName, Service>) {
        match update {
            Update::Applied(name, service)
                if self.services.get(&name).is_some_and(|it| **it == service) =>
            {
                return;
            }
            Update::Applied(name, service) => {
                self.forget_service(&name);
                self.learn_service(name, service);
            }
            Update::Removed(name) => self.forget_service(&name),
            Update::Replaced(all) => {
                self.services.clear();
                self.service_of.clear();
                for (name, service) in all {
                    self.learn_service(name, service);
                }
            }
        }
        self.is_changed = true;
        if self.services_are_covered() {
            self.derive_service_networks();
        }
    }

    pub(crate) fn update_pods(&mut self, update: Update<ObjectName, Pod>) {
        match update {
            // Most events of a pod are about something else.
            Update::Applied(name, pod) if self.pods.get(&name) == Some(&pod) => return,
            Update::Applied(name, pod) => {
                let mut was_covered = self.is_declared(&pod);
                was_covered &= self.forget_pod(&name);
                self.learn_pod(name, pod);
                if was_covered {
                    return;
                }
            }
            Update::Removed(name) => {
                if self.forget_pod(&name) {
                    return;
                }
            }
            Update::Replaced(all) => {
                self.pods.clear();
                self.pod_of.clear();
                self.on_nodes.clear();
                for (name, pod) in all {
                    self.learn_pod(name, pod);
                }
            }
        }
        self.derive_pod_networks();
    }

    pub(crate) fn update_nodes(&mut self, update: Update<String, Node>) {
        if !step(&mut self.nodes, update) {
            return;
        }
        self.is_changed = true;
        let nodes = self.nodes.values();
        self.declared = nodes.flat_map(|node| node.pod_networks.clone()).collect();
        self.node_addresses = self
            .nodes
            .values()
            .flat_map(|node| node.external.iter().chain(&node.internal))
            .copied()
            .collect();
        self.derive_pod_networks();
    }

    pub(crate) fn update_endpoints(&mut self, update: Update<ObjectName, Endpoints>) {
        self.slices.update(update);
    }

    /// None where they cannot be found: then the services that are known are covered.
    pub(crate) fn set_service_networks(&mut self, found: Option<Vec<IpNet>>) {
        self.is_changed |= self.found_service_networks != found;
        self.found_service_networks = found;
        self.derive_service_networks();
    }

    pub(crate) fn services_are_covered(&self) -> bool {
        self.found_service_networks.is_none()
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    #[cfg(test)]
    pub(crate) fn services(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        self.services.iter()
    }

    /// Those of one namespace.
    pub(crate) fn services_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Service>)> {
        let first = ObjectName::new(namespace, "");

        self.services
            .range(first..)
            .take_while(move |(name, _)| name.namespace == namespace)
    }

    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    pub(crate) fn service_networks(&self) -> &[IpNet] {
        &self.service_networks
    }

    pub(crate) fn pod_networks(&self) -> &[IpNet] {
        &self.pod_networks
    }

    fn learn_service(&mut self, name: ObjectName, service: Service) {
        for address in &service.cluster_ips {
            self.service_of.insert(*address, name.clone());
        }
        self.services.insert(name, Arc::new(service));
    }

    fn forget_service(&mut self, name: &ObjectName) {
        let Some(service) = self.services.remove(name) else {
            return;
        };
        for address in &service.cluster_ips {
            if self.service_of.get(address) == Some(name) {
                self.service_of.remove(address);
            }
        }
    }

    fn learn_pod(&mut self, name: ObjectName, pod: Pod) {
        for address in &pod.addresses {
            self.pod_of.insert(*address, name.clone());
        }
        for port in &pod.on_node {
            *self.on_nodes.entry(*port).or_default() += 1;
        }
        self.pods.insert(name, pod);
    }

    /// Whether all addresses of a pod are in networks that nodes declare, and so change none.
    fn is_declared(&self, pod: &Pod) -> bool {
        let is_covered = |address| {
            self.declared
                .iter()
                .any(|network| network.contains(address))
        };

        pod.addresses.iter().all(is_covered)
    }

    /// Whether that changes no network.
    fn forget_pod(&mut self, name: &ObjectName) -> bool {
        let Some(pod) = self.pods.remove(name) else {
            return true;
        };
        for address in &pod.addresses {
            // A later pod may have the address by now.
            if self.pod_of.get(address) == Some(name) {
                self.pod_of.remove(address);
            }
        }
        for port in &pod.on_node {
            // One pod may follow another before its own end is told.
            if let Some(count) = self.on_nodes.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.on_nodes.remove(port);
                }
            }
        }

        self.is_declared(&pod)
    }

    fn derive_service_networks(&mut self) {
        self.service_networks = match &self.found_service_networks {
            Some(found) => found.clone(),
            None => {
                let services = self.service_of.keys().copied();
                networks::pod_networks(&[], services, &self.node_addresses)
            }
        };
    }

    fn derive_pod_networks(&mut self) {
        let addresses = self.pod_of.keys().copied();
        let networks = networks::pod_networks(&self.declared, addresses, &self.node_addresses);
        self.is_changed |= self.pod_networks != networks;
        self.pod_networks = networks;
    }
}

/// Whether the map is another now.
fn step<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, update: Update<K, V>) -> bool {
    match update {
        Update::Applied(name, value) if map.get(&name) == Some(&value) => false,
        Update::Applied(name, value) => {
            map.insert(name, value);
            true
        }
        Update::Removed(name) => map.remove(&name).is_some(),
        Update::Replaced(all) => {
            let is_new = *map != all;
            *map = all;
            is_new
        }
    }
}

/// The model, shared by everything that reads it; every change that somebody is told moves `revision`.
#[derive(Debug, Clone)]
pub(crate) struct SharedModel {
    inner: Arc<RwLock<Model>>,
    revision: watch::Sender<u64>,
    /// Of any update, also of one that nobody is told.
    updated: Arc<Notify>,
}

impl SharedModel {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::default(),
            revision: watch::Sender::new(0),
            updated: Arc::default(),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Model> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Model)) {
        let mut model = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut model);
        let is_changed = mem::take(&mut model.is_changed);
        drop(model);
        self.updated.notify_waiters();
        if is_changed {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

#[cfg(test)]
mod tests;

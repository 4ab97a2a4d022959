//! The manager's model of the cluster.
//!
//! `index` writes it from Kubernetes objects, `grpc` and `gateway` read it; neither sees the other.

mod containers;
pub(crate) mod endpoints;
mod log;
mod networks;
mod owner;
mod pods;
mod recent;
mod shared;
pub(crate) mod table;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    net::IpAddr,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

pub(crate) use containers::{AgentEnviron, EnvironError, FoundContainer, WantedContainer};
use endpoints::{Endpoints, OnNodes, Slices};
use ipnet::IpNet;
use log::Log;
use networks::Cover;
pub(crate) use owner::Owner;
use recent::Recent;
pub(crate) use shared::SharedModel;
use tokio::time::Instant;
pub(crate) use workloads::{FindError, FoundPod, FoundWorkload, Port, Workload};

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
    /// Further addresses whose connections nodes send to it (`spec.externalIPs`).
    pub(crate) external_ips: Vec<IpAddr>,
    pub(crate) exposure: Exposure,
}

impl Service {
    /// Further addresses whose connections nodes send to it.
    fn claims(&self) -> impl Iterator<Item = IpAddr> {
        let balancers = self.exposure.ingress.iter().filter_map(|it| match it {
            Ingress::Address(address) => Some(*address),
            Ingress::Name(_) => None,
        });

        self.external_ips.iter().copied().chain(balancers)
    }
}

/// How a service is reached from outside the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exposure {
    pub(crate) ingress: Vec<Ingress>,
    /// The first one of its ports.
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
    /// Ports that it declares, at its node's addresses.
    pub(crate) on_node: Vec<(IpAddr, u16)>,
    pub(crate) uid: Box<str>,
    /// Name of its node.
    pub(crate) node: Box<str>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) external: Vec<IpAddr>,
    pub(crate) internal: Vec<IpAddr>,
    /// Addresses of bridges and tunnels, in networks of pods.
    pub(crate) tunnels: Vec<IpAddr>,
    pub(crate) pod_networks: Vec<IpNet>,
}

/// One step of a watch.
#[derive(Debug)]
pub(crate) enum Update<K, V> {
    Applied(K, V),
    Removed(K),
    /// The complete listing.
    Replaced(BTreeMap<K, V>),
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    namespaces: BTreeMap<String, ()>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    service_of: HashMap<IpAddr, ObjectName>,
    /// Services by the further addresses whose connections nodes send to them.
    claims: HashMap<IpAddr, BTreeSet<ObjectName>>,
    pods: BTreeMap<ObjectName, Pod>,
    pod_of: HashMap<IpAddr, ObjectName>,
    on_nodes: OnNodes,
    /// Namespaces of addresses that pods released: services may lead there for a moment.
    gone_pods: Recent<IpAddr, String>,
    slices: Slices,
    nodes: BTreeMap<String, Node>,
    node_addresses: BTreeSet<IpAddr>,
    /// Bridges of the common pod networks hold the first address: the node answers there.
    gateways: BTreeSet<IpAddr>,
    /// `None` until they are found, and if they cannot be.
    found_service_networks: Option<Vec<IpNet>>,
    service_networks: Vec<IpNet>,
    /// The networks of pods that nodes declare.
    declared: Vec<IpNet>,
    pod_networks: Vec<IpNet>,
    /// Covers of the addresses of services, and of pods outside the declared networks.
    service_cover: Cover,
    pod_cover: Cover,
    /// Networks to derive again; pods' at most once per `networks_interval`: all sessions get all.
    stale: Stale,
    networks_interval: Duration,
    derived: Option<Instant>,
    /// Changes that readers follow. Most events of a cluster's objects concern no reader.
    log: Log,
    #[cfg(test)]
    looks: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    derivations: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stale {
    services: bool,
    pods: bool,
}

impl Model {
    pub(crate) fn update_namespaces(&mut self, update: Update<String, ()>) {
        if apply_update(&mut self.namespaces, update) {
            self.log.namespaces_changed();
        }
    }

    pub(crate) fn update_services(&mut self, update: Update<ObjectName, Service>) {
        match update {
            Update::Applied(name, service) => self.set_service(name, Some(service)),
            Update::Removed(name) => self.set_service(name, None),
            Update::Replaced(all) => self.replace_services(all),
        }
    }

    pub(crate) fn update_pods(&mut self, update: Update<ObjectName, Pod>) {
        match update {
            Update::Applied(name, pod) => self.set_pod(name, Some(pod)),
            Update::Removed(name) => self.set_pod(name, None),
            Update::Replaced(all) => {
                self.pod_of = addresses(&all, |pod| &pod.addresses);
                self.on_nodes = OnNodes::of(all.iter());
                self.pods = all;
                self.cover_pods();
            }
        }
    }

    pub(crate) fn update_nodes(&mut self, update: Update<String, Node>) {
        if !apply_update(&mut self.nodes, update) {
            return;
        }
        // Candidates depend on nodes.
        self.log.other_changed();
        let nodes = self.nodes.values();
        self.declared = nodes.flat_map(|node| node.pod_networks.clone()).collect();
        let tunnels = self.nodes.values().flat_map(|node| node.tunnels.clone());
        let bridges = self.declared.iter().filter_map(networks::first);
        self.gateways = bridges.chain(tunnels).collect();
        self.node_addresses = self
            .nodes
            .values()
            .flat_map(|node| node.external.iter().chain(&node.internal))
            .copied()
            .collect();
        self.cover_pods();
        self.stale.services = true;
    }

    pub(crate) fn update_endpoints(&mut self, update: Update<ObjectName, Endpoints>) {
        self.slices.update(update);
    }

    /// `None` if they cannot be found: then the known services are covered.
    pub(crate) fn set_service_networks(&mut self, found: Option<Vec<IpNet>>) {
        if self.found_service_networks != found {
            self.found_service_networks = found;
            self.stale.services = true;
            // Even if the networks are the same, sessions are told whether they are a cover.
            self.log.networks_changed();
        }
    }

    /// Derives the stale networks, once for any number of updates.
    pub(crate) fn settle(&mut self) {
        let stale = mem::take(&mut self.stale);
        if stale.services {
            let networks = match &self.found_service_networks {
                Some(found) => found.clone(),
                None => self.service_cover.networks(&[], &self.node_addresses),
            };
            if self.service_networks != networks {
                self.service_networks = networks;
                self.log.networks_changed();
            }
        }
        let is_early = self
            .derived
            .is_some_and(|at| at.elapsed() < self.networks_interval);
        self.stale.pods = stale.pods && is_early;
        if stale.pods && !is_early {
            self.derived = Some(Instant::now());
            #[cfg(test)]
            {
                self.derivations += 1;
            }
            let networks = self
                .pod_cover
                .networks(&self.declared, &self.node_addresses);
            if self.pod_networks != networks {
                self.pod_networks = networks;
                self.log.networks_changed();
            }
        }
    }

    /// Sets how often networks of pods are derived; the caller settles deferred ones later.
    pub(crate) fn set_networks_interval(&mut self, interval: Duration) {
        self.networks_interval = interval;
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

    /// The services of one namespace that follow the service `after`.
    pub(crate) fn services_after<'a>(
        &'a self,
        namespace: &'a str,
        after: Option<&ObjectName>,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Service>)> + use<'a> {
        let first = match after {
            Some(after) => Bound::Excluded(after.clone()),
            None => Bound::Included(ObjectName::new(namespace, "")),
        };

        self.services
            .range((first, Bound::Unbounded))
            .inspect(|_| self.count_look())
            .take_while(move |(name, _)| name.namespace == namespace)
    }

    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.count_look();
        self.services.get(name)
    }

    pub(crate) fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// The pod that has this address.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<(&ObjectName, &Pod)> {
        let name = self.pod_of.get(&address.to_canonical())?;

        Some((name, self.pods.get(name)?))
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
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

    fn set_service(&mut self, name: ObjectName, service: Option<Service>) {
        let before = self.services.get(&name);
        if before.map(|it| &**it) == service.as_ref() {
            return;
        }
        let before = self.services.remove(&name);
        let mut is_other = false;
        for address in before.iter().flat_map(|it| &it.cluster_ips) {
            if self.service_of.get(address) == Some(&name) {
                self.service_of.remove(address);
                is_other |= self.service_cover.remove(*address, &self.node_addresses);
            }
        }
        for address in before.iter().flat_map(|it| it.claims()) {
            if let Some(claims) = self.claims.get_mut(&address) {
                claims.remove(&name);
                if claims.is_empty() {
                    self.claims.remove(&address);
                }
            }
        }
        for address in service.iter().flat_map(Service::claims) {
            self.claims.entry(address).or_default().insert(name.clone());
        }
        for address in service.iter().flat_map(|it| &it.cluster_ips) {
            self.service_of.insert(*address, name.clone());
            is_other |= self.service_cover.insert(*address, &self.node_addresses);
        }
        self.stale.services |= is_other && self.services_are_covered();
        if let Some(service) = service {
            self.services.insert(name.clone(), Arc::new(service));
        }
        self.log.service_changed(name);
    }

    fn replace_services(&mut self, all: BTreeMap<ObjectName, Service>) {
        self.service_of = addresses(&all, |service| &service.cluster_ips);
        self.claims.clear();
        for (name, service) in &all {
            for address in service.claims() {
                self.claims.entry(address).or_default().insert(name.clone());
            }
        }
        self.service_cover = Cover::of(self.service_of.keys().copied());
        self.stale.services = true;
        let mut before = mem::take(&mut self.services);
        for (name, service) in all {
            let same = before.remove(&name).filter(|it| **it == service);
            if same.is_none() {
                self.log.service_changed(name.clone());
            }
            let service = same.unwrap_or_else(|| Arc::new(service));
            self.services.insert(name, service);
        }
        for name in before.into_keys() {
            self.log.service_changed(name);
        }
    }

    fn cover_pods(&mut self) {
        let pods = self.pod_of.keys().copied();
        let outside = pods.filter(|pod| !networks::is_in(*pod, &self.declared));
        self.pod_cover = Cover::of(outside);
        self.stale.pods = true;
    }

    fn set_pod(&mut self, name: ObjectName, pod: Option<Pod>) {
        // Most events of a pod are about something else.
        if self.pods.get(&name) == pod.as_ref() {
            return;
        }
        let before = self.pods.remove(&name);
        self.on_nodes
            .replace(&name.namespace, before.as_ref(), pod.as_ref());
        for address in before.iter().flat_map(|it| &it.addresses) {
            // A later pod may have the address by now.
            if self.pod_of.get(address) == Some(&name) {
                self.pod_of.remove(address);
                self.gone_pods.insert(*address, name.namespace.clone());
                self.stale.pods |= self.pod_cover.remove(*address, &self.node_addresses);
            }
        }
        for address in pod.iter().flat_map(|it| &it.addresses) {
            self.pod_of.insert(*address, name.clone());
            if !networks::is_in(*address, &self.declared) {
                self.stale.pods |= self.pod_cover.insert(*address, &self.node_addresses);
            }
        }
        if let Some(pod) = pod {
            self.pods.insert(name, pod);
        }
    }

    fn count_look(&self) {
        #[cfg(test)]
        self.looks
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The object that has each address.
fn addresses<V>(
    all: &BTreeMap<ObjectName, V>,
    of: impl Fn(&V) -> &Vec<IpAddr>,
) -> HashMap<IpAddr, ObjectName> {
    let each = all.iter().flat_map(|(name, value)| {
        let addresses = of(value).iter();
        addresses.map(|address| (*address, name.clone()))
    });

    each.collect()
}

/// Applies an update, and returns whether the map has changed.
fn apply_update<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, update: Update<K, V>) -> bool {
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

#[cfg(test)]
mod tests;

//! The cluster's names, as the manager sent them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

/// The addresses of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Cluster IPs; empty for headless services and ExternalName, which only the cluster resolves.
    pub addresses: Vec<IpAddr>,
}

/// The table that names are decided by: namespaces, services and networks of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    domain: Vec<String>,
    connected_namespace: String,
    /// Services of other namespaces that have names of one label, with their namespaces.
    lent: BTreeMap<String, String>,
    /// Empty: all.
    mapped: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    services: BTreeMap<String, BTreeMap<String, ServiceEntry>>,
    /// Namespace and name of every service with this address: while an address moves, two have it.
    by_address: BTreeMap<IpAddr, BTreeSet<(String, String)>>,
    networks: Vec<IpNet>,
}

impl Zone {
    /// An empty zone of the cluster domain `domain`, whose services in `connected_namespace` have
    /// names of one label. Names are limited to the namespaces `mapped` unless that is empty.
    pub fn new(
        domain: &str,
        connected_namespace: &str,
        mapped: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            domain: labels(domain),
            connected_namespace: connected_namespace.to_owned(),
            lent: BTreeMap::new(),
            mapped: mapped.into_iter().collect(),
            namespaces: BTreeSet::new(),
            services: BTreeMap::new(),
            by_address: BTreeMap::new(),
            networks: Vec::new(),
        }
    }

    /// Sets the cluster's own domain.
    pub fn set_domain(&mut self, domain: &str) {
        self.domain = labels(domain);
    }

    /// Sets the services of other namespaces, by name with the namespace, that have names of one label
    /// as well. A service of the connected namespace comes first.
    pub fn lend(&mut self, services: BTreeMap<String, String>) {
        self.lent = services;
    }

    pub(super) fn lender(&self, service: &str) -> Option<&str> {
        self.lent.get(service).map(String::as_str)
    }

    /// Replaces everything by these namespaces and networks, without services.
    pub fn replace(&mut self, namespaces: impl IntoIterator<Item = String>, networks: Vec<IpNet>) {
        self.services.clear();
        self.by_address.clear();
        self.set_frame(namespaces, networks);
    }

    /// Sets namespaces and networks, and keeps the services of the namespaces that remain.
    pub fn set_frame(
        &mut self,
        namespaces: impl IntoIterator<Item = String>,
        networks: Vec<IpNet>,
    ) {
        self.namespaces = namespaces.into_iter().collect();
        self.namespaces
            .retain(|name| self.mapped.is_empty() || self.mapped.contains(name));
        self.services
            .retain(|namespace, _| self.namespaces.contains(namespace));
        self.by_address.retain(|_, owners| {
            owners.retain(|(namespace, _)| self.namespaces.contains(namespace));
            !owners.is_empty()
        });
        self.networks = networks;
    }

    /// Adds or replaces the service `name` of `namespace`; ignored if the namespace is not visible.
    pub fn apply(&mut self, namespace: &str, name: &str, service: ServiceEntry) {
        self.remove(namespace, name);
        if !self.namespaces.contains(namespace) {
            return;
        }
        for address in &service.addresses {
            self.by_address
                .entry(*address)
                .or_default()
                .insert((namespace.to_owned(), name.to_owned()));
        }
        self.services
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), service);
    }

    /// Removes the service `name` of `namespace`.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(services) = self.services.get_mut(namespace) else {
            return;
        };
        let Some(service) = services.remove(name) else {
            return;
        };
        if services.is_empty() {
            self.services.remove(namespace);
        }
        let owner = (namespace.to_owned(), name.to_owned());
        for address in service.addresses {
            if let Some(owners) = self.by_address.get_mut(&address) {
                owners.remove(&owner);
                if owners.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }

    /// The service `name` of `namespace`; both in lower case.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(namespace)?.get(name)
    }

    /// Namespace and name of the service with this cluster IP; of several, the first in the order of
    /// the alphabet.
    pub fn service_at(&self, address: IpAddr) -> Option<(&str, &str)> {
        let (namespace, name) = self.by_address.get(&address)?.first()?;

        Some((namespace, name))
    }

    /// Returns whether the cluster has the namespace `name` and it is visible.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// Returns whether `service.namespace` resolves without `svc`. Anybody who may give the user a
    /// right adds a namespace beside those that the user named: it must not shadow a public
    /// top-level domain.
    pub(super) fn has_short_names(&self, namespace: &str) -> bool {
        let is_chosen = namespace == self.connected_namespace || !self.mapped.is_empty();

        self.namespaces.contains(namespace) && (is_chosen || !is_registry(namespace))
    }

    /// The visible namespaces, in the order of the alphabet.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(String::as_str)
    }

    /// The number of services in all visible namespaces.
    pub fn service_count(&self) -> usize {
        self.services.values().map(BTreeMap::len).sum()
    }

    /// The full name of one service, without a dot at its end, and its IPv4 address; `None` if there
    /// is no service with an IPv4 address.
    pub fn a_service(&self) -> Option<(String, Ipv4Addr)> {
        let (address, owner) = self.by_address.iter().find_map(|(address, owners)| {
            let IpAddr::V4(address) = address else {
                return None;
            };
            Some((*address, owners.first()?))
        })?;
        let (namespace, name) = owner;
        let domain = self.domain.join(".");

        Some((format!("{name}.{namespace}.svc.{domain}"), address))
    }

    /// The namespace whose services have names of one label.
    pub fn connected_namespace(&self) -> &str {
        &self.connected_namespace
    }

    /// The cluster's service and pod networks.
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Returns whether `address` lies in the cluster's service or pod networks.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    pub(super) fn domain_labels(&self) -> &[String] {
        &self.domain
    }

    /// The search path of a pod of the connected namespace (search in resolv.conf(5)), without dots
    /// at the ends.
    pub fn search(&self) -> Vec<String> {
        let domain = self.domain.join(".");
        vec![
            format!("{}.svc.{domain}", self.connected_namespace),
            format!("svc.{domain}"),
            domain,
        ]
    }
}

/// True for the top-level domains of RFC 1591: the generic ones and all two-letter country codes.
/// Later ones, such as `dev` and `app`, are common names of namespaces as well; there the cluster
/// keeps its two-label names.
fn is_registry(label: &str) -> bool {
    matches!(
        label,
        "arpa" | "com" | "edu" | "gov" | "int" | "mil" | "net" | "org"
    ) || (label.len() == 2 && label.bytes().all(|it| it.is_ascii_lowercase()))
}

pub(super) fn labels(domain: &str) -> Vec<String> {
    let domain = domain.trim_matches('.').to_ascii_lowercase();

    domain.split('.').map(str::to_owned).collect()
}

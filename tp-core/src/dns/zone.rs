//! The cluster's names as the manager told them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

/// A Service, as far as names go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Cluster IPs; empty for headless services and ExternalName, which only the cluster resolves.
    pub addresses: Vec<IpAddr>,
}

/// Everything that names are decided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    domain: Vec<String>,
    connected_namespace: String,
    /// Empty: all.
    mapped: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    services: BTreeMap<String, BTreeMap<String, ServiceEntry>>,
    by_address: BTreeMap<IpAddr, (String, String)>,
    networks: Vec<IpNet>,
}

impl Zone {
    /// An empty zone of the cluster domain `domain`. Names are limited to the namespaces `mapped`
    /// unless that is empty.
    pub fn new(
        domain: &str,
        connected_namespace: &str,
        mapped: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            domain: labels(domain),
            connected_namespace: connected_namespace.to_owned(),
            mapped: mapped.into_iter().collect(),
            namespaces: BTreeSet::new(),
            services: BTreeMap::new(),
            by_address: BTreeMap::new(),
            networks: Vec::new(),
        }
    }

    /// The cluster's own domain, when it turns out to be another.
    pub fn set_domain(&mut self, domain: &str) {
        self.domain = labels(domain);
    }

    /// Begins anew with these namespaces and networks, without services.
    pub fn replace(&mut self, namespaces: impl IntoIterator<Item = String>, networks: Vec<IpNet>) {
        self.namespaces = namespaces.into_iter().collect();
        self.namespaces
            .retain(|name| self.mapped.is_empty() || self.mapped.contains(name));
        self.services.clear();
        self.by_address.clear();
        self.networks = networks;
    }

    pub fn apply(&mut self, namespace: &str, name: &str, service: ServiceEntry) {
        self.remove(namespace, name);
        if !self.namespaces.contains(namespace) {
            return;
        }
        for address in &service.addresses {
            self.by_address
                .insert(*address, (namespace.to_owned(), name.to_owned()));
        }
        self.services
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), service);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(service) = self
            .services
            .get_mut(namespace)
            .and_then(|services| services.remove(name))
        else {
            return;
        };
        for address in service.addresses {
            // The address may have gone to another service before this one was removed.
            let is_own = self
                .by_address
                .get(&address)
                .is_some_and(|(owner, owned)| owner == namespace && owned == name);
            if is_own {
                self.by_address.remove(&address);
            }
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(namespace)?.get(name)
    }

    pub fn service_at(&self, address: IpAddr) -> Option<(&str, &str)> {
        self.by_address
            .get(&address)
            .map(|(namespace, name)| (namespace.as_str(), name.as_str()))
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    pub fn connected_namespace(&self) -> &str {
        &self.connected_namespace
    }

    /// Whether `address` lies in the cluster's service or pod networks.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    pub(super) fn domain_labels(&self) -> &[String] {
        &self.domain
    }

    /// The search path of a pod of the connected namespace.
    pub fn search(&self) -> Vec<String> {
        let domain = self.domain.join(".");
        vec![
            format!("{}.svc.{domain}", self.connected_namespace),
            format!("svc.{domain}"),
            domain,
        ]
    }
}

fn labels(domain: &str) -> Vec<String> {
    let domain = domain.trim_matches('.').to_ascii_lowercase();

    domain.split('.').map(str::to_owned).collect()
}

//! The endpoints of services: a user who may write them can make a cluster IP lead to a node or to
//! the API server (CVE-2021-25740).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Model, ObjectName, Pod, Update, recent::Recent};

/// One EndpointSlice: every address at every port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) service: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Empty: all ports.
    pub(crate) ports: Vec<u16>,
}

impl Endpoints {
    /// Returns whether host-network pods of `namespace` declare all these ports at `address`.
    pub(super) fn are_of_pods(&self, namespace: &str, address: IpAddr, all: &OnNodes) -> bool {
        let declared = all.0.get(namespace);
        let is_of_pod = |port: &u16| declared.is_some_and(|it| it.contains_key(&(address, *port)));

        !self.ports.is_empty() && self.ports.iter().all(is_of_pod)
    }
}

impl Model {
    /// The slices of a service.
    pub(crate) fn endpoints_of(&self, service: &ObjectName) -> impl Iterator<Item = &Endpoints> {
        self.slices.of(service)
    }
}

/// Number of host-network pods that declare a port at a node's address, by namespace.
#[derive(Debug, Default)]
pub(super) struct OnNodes(HashMap<String, HashMap<(IpAddr, u16), usize>>);

impl OnNodes {
    pub(super) fn of<'a>(pods: impl Iterator<Item = (&'a ObjectName, &'a Pod)>) -> Self {
        let mut this = Self::default();
        pods.for_each(|(name, pod)| this.replace(&name.namespace, None, Some(pod)));

        this
    }

    /// Ports are counted because a pod may be reported before the end of its predecessor.
    pub(super) fn replace(&mut self, namespace: &str, before: Option<&Pod>, after: Option<&Pod>) {
        if [before, after]
            .iter()
            .flatten()
            .all(|pod| pod.on_node.is_empty())
        {
            return;
        }
        let ports = self.0.entry(namespace.to_owned()).or_default();
        for port in after.iter().flat_map(|pod| &pod.on_node) {
            *ports.entry(*port).or_default() += 1;
        }
        for port in before.iter().flat_map(|pod| &pod.on_node) {
            if let Some(count) = ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    ports.remove(port);
                }
            }
        }
        if ports.is_empty() {
            self.0.remove(namespace);
        }
    }
}

/// All slices, by their own names and by those of their services.
#[derive(Debug, Default)]
pub(super) struct Slices {
    slices: BTreeMap<ObjectName, Endpoints>,
    of_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Endpoints removed from a service.
    removed: Recent<ObjectName, Endpoints>,
}

impl Slices {
    pub(super) fn update(&mut self, update: Update<ObjectName, Endpoints>) {
        match update {
            Update::Applied(name, slice) => {
                self.forget(&name, Some(&slice));
                self.learn(name, slice);
            }
            Update::Removed(name) => self.forget(&name, None),
            Update::Replaced(all) => {
                let known: Vec<ObjectName> = self.slices.keys().cloned().collect();
                for name in known {
                    self.forget(&name, all.get(&name));
                }
                for (name, slice) in all {
                    self.learn(name, slice);
                }
            }
        }
        self.removed.forget();
    }

    pub(super) fn of(&self, service: &ObjectName) -> impl Iterator<Item = &Endpoints> {
        let names = self.of_service.get(service).into_iter().flatten();

        names.filter_map(|name| self.slices.get(name))
    }

    /// Removed endpoints that nodes may still send connections to: they learn of a change later.
    pub(super) fn removed(&self, service: &ObjectName) -> impl Iterator<Item = &Endpoints> {
        self.removed.of(service)
    }

    fn learn(&mut self, name: ObjectName, slice: Endpoints) {
        let service = ObjectName::new(name.namespace.clone(), slice.service.clone());
        let names = self.of_service.entry(service).or_default();
        names.insert(name.clone());
        self.slices.insert(name, slice);
    }

    fn forget(&mut self, name: &ObjectName, after: Option<&Endpoints>) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        let service = ObjectName::new(name.namespace.clone(), slice.service.clone());
        let stays =
            after.filter(|after| after.service == slice.service && after.ports == slice.ports);
        let is_gone = |address: &IpAddr| stays.is_none_or(|it| !it.addresses.contains(address));
        let gone = Endpoints {
            addresses: slice.addresses.iter().copied().filter(is_gone).collect(),
            ..slice
        };
        if !gone.addresses.is_empty() {
            self.removed.insert(service.clone(), gone);
        }
        if let Some(names) = self.of_service.get_mut(&service) {
            names.remove(name);
            if names.is_empty() {
                self.of_service.remove(&service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::recent::RECENT_LIFETIME, *};

    fn slice(service: &str, address: &str) -> Endpoints {
        Endpoints {
            service: service.to_owned(),
            addresses: vec![address.parse().unwrap()],
            ports: vec![80],
        }
    }

    fn addresses(slices: &Slices, service: &str) -> Vec<String> {
        let service = ObjectName::new("shop", service);
        let all = slices.of(&service).flat_map(|it| &it.addresses);

        all.map(IpAddr::to_string).collect()
    }

    #[test]
    fn a_service_leads_to_the_endpoints_of_all_its_slices() {
        let mut slices = Slices::default();
        let name = |name: &str| ObjectName::new("shop", name);
        slices.update(Update::Applied(name("a"), slice("web", "10.0.0.1")));
        slices.update(Update::Applied(name("b"), slice("web", "10.0.0.2")));
        slices.update(Update::Applied(name("c"), slice("db", "10.0.0.3")));
        assert_eq!(addresses(&slices, "web"), ["10.0.0.1", "10.0.0.2"]);

        // Moved to another service, and removed.
        slices.update(Update::Applied(name("b"), slice("db", "10.0.0.2")));
        slices.update(Update::Removed(name("c")));

        assert_eq!(addresses(&slices, "web"), ["10.0.0.1"]);
        assert_eq!(addresses(&slices, "db"), ["10.0.0.2"]);
        slices.update(Update::Replaced(BTreeMap::new()));
        assert!(slices.of_service.is_empty() && slices.slices.is_empty());
    }

    #[test]
    fn what_has_left_a_service_is_remembered_for_a_while() {
        let mut slices = Slices::default();
        let name = ObjectName::new("shop", "a");
        let web = ObjectName::new("shop", "web");
        let removed = |slices: &Slices| -> Vec<String> {
            let all = slices.removed(&web).flat_map(|it| &it.addresses);
            all.map(IpAddr::to_string).collect()
        };
        slices.update(Update::Applied(name.clone(), slice("web", "10.0.0.1")));
        slices.update(Update::Applied(name.clone(), slice("web", "10.0.0.1")));
        assert_eq!(removed(&slices), [""; 0]);

        slices.update(Update::Applied(name.clone(), slice("web", "10.0.0.2")));
        assert_eq!(removed(&slices), ["10.0.0.1"]);
        slices.update(Update::Replaced(BTreeMap::new()));
        assert_eq!(removed(&slices), ["10.0.0.1", "10.0.0.2"]);

        slices.removed.age(RECENT_LIFETIME * 2);
        assert_eq!(removed(&slices), [""; 0]);
        slices.update(Update::Removed(name));
        assert_eq!(slices.removed.len(), 0);
    }
}

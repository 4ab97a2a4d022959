//! Where services lead: a cluster IP stands for whatever its endpoints are, and who may write them
//! may let it stand for a node or for the API server (CVE-2021-25740).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{ObjectName, Pod, Update};

/// One EndpointSlice: every address at every port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) service: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Empty: all there are.
    pub(crate) ports: Vec<u16>,
}

impl Endpoints {
    /// Whether pods that share the network of their node declare all that is reached at `address`.
    pub(super) fn are_of_pods(&self, address: IpAddr, declared: &OnNodes) -> bool {
        let is_of_pod = |port: &u16| declared.0.contains_key(&(address, *port));

        !self.ports.is_empty() && self.ports.iter().all(is_of_pod)
    }
}

/// How many pods that share the network of their node declare a port there.
#[derive(Debug, Default)]
pub(super) struct OnNodes(HashMap<(IpAddr, u16), usize>);

impl OnNodes {
    pub(super) fn of<'a>(pods: impl Iterator<Item = &'a Pod>) -> Self {
        let mut this = Self::default();
        pods.for_each(|pod| this.replace(None, Some(pod)));

        this
    }

    /// One pod may follow another before the end of that one is told: ports are counted.
    pub(super) fn replace(&mut self, before: Option<&Pod>, after: Option<&Pod>) {
        for port in after.iter().flat_map(|pod| &pod.on_node) {
            *self.0.entry(*port).or_default() += 1;
        }
        for port in before.iter().flat_map(|pod| &pod.on_node) {
            if let Some(count) = self.0.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(port);
                }
            }
        }
    }
}

/// All slices, by their own names and by those of their services.
#[derive(Debug, Default)]
pub(super) struct Slices {
    slices: BTreeMap<ObjectName, Endpoints>,
    of_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
}

impl Slices {
    pub(super) fn update(&mut self, update: Update<ObjectName, Endpoints>) {
        match update {
            Update::Applied(name, slice) => {
                self.forget(&name);
                self.learn(name, slice);
            }
            Update::Removed(name) => self.forget(&name),
            Update::Replaced(all) => {
                *self = Self::default();
                for (name, slice) in all {
                    self.learn(name, slice);
                }
            }
        }
    }

    pub(super) fn of(&self, service: &ObjectName) -> impl Iterator<Item = &Endpoints> {
        let names = self.of_service.get(service).into_iter().flatten();

        names.filter_map(|name| self.slices.get(name))
    }

    fn learn(&mut self, name: ObjectName, slice: Endpoints) {
        let service = ObjectName::new(name.namespace.clone(), slice.service.clone());
        let names = self.of_service.entry(service).or_default();
        names.insert(name.clone());
        self.slices.insert(name, slice);
    }

    fn forget(&mut self, name: &ObjectName) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        let service = ObjectName::new(name.namespace.clone(), slice.service);
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
    use super::*;

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

        // To another service, and away.
        slices.update(Update::Applied(name("b"), slice("db", "10.0.0.2")));
        slices.update(Update::Removed(name("c")));

        assert_eq!(addresses(&slices, "web"), ["10.0.0.1"]);
        assert_eq!(addresses(&slices, "db"), ["10.0.0.2"]);
        slices.update(Update::Replaced(BTreeMap::new()));
        assert!(slices.of_service.is_empty() && slices.slices.is_empty());
    }
}

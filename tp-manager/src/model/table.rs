//! The part of the model that one user may see, and how it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Model, ObjectName, Service};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) services: BTreeMap<ObjectName, Arc<Service>>,
    pub(crate) service_networks: Vec<IpNet>,
    pub(crate) pod_networks: Vec<IpNet>,
    pub(crate) services_are_covered: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Namespaces or networks are others.
    Frame,
    Applied(ObjectName, Arc<Service>),
    Removed(ObjectName),
}

impl View {
    /// What is in `namespaces`.
    pub(crate) fn of(model: &Model, namespaces: BTreeSet<String>) -> Self {
        let services = namespaces
            .iter()
            .flat_map(|namespace| model.services_in(namespace))
            .map(|(name, service)| (name.clone(), Arc::clone(service)))
            .collect();

        Self {
            namespaces,
            services,
            service_networks: model.service_networks().to_vec(),
            pod_networks: model.pod_networks().to_vec(),
            services_are_covered: model.services_are_covered(),
        }
    }

    /// What turns `self` into `new`.
    pub(crate) fn changes_to(&self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.namespaces != new.namespaces
            || self.service_networks != new.service_networks
            || self.pod_networks != new.pod_networks
            || self.services_are_covered != new.services_are_covered
        {
            changes.push(Change::Frame);
        }
        for name in self.services.keys() {
            if !new.services.contains_key(name) {
                changes.push(Change::Removed(name.clone()));
            }
        }
        for (name, service) in &new.services {
            if self.services.get(name) != Some(service) {
                changes.push(Change::Applied(name.clone(), Arc::clone(service)));
            }
        }

        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Update;

    fn model(services: &[(&str, &str)]) -> Model {
        let mut model = Model::default();
        for (namespace, name) in services {
            let name = ObjectName::new(*namespace, *name);
            model.update_services(Update::Applied(name, Service::default()));
        }
        model
    }

    fn namespaces(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_view_holds_only_the_namespaces_of_the_user() {
        let model = model(&[("shop", "web"), ("bank", "vault")]);

        let view = View::of(&model, namespaces(&["shop"]));

        let names: Vec<_> = view
            .services
            .keys()
            .map(|name| name.name.as_str())
            .collect();
        assert_eq!(names, ["web"]);
    }

    #[test]
    fn an_unchanged_view_has_no_changes() {
        let model = model(&[("shop", "web")]);
        let view = View::of(&model, namespaces(&["shop"]));

        assert_eq!(view.changes_to(&view.clone()), []);
    }

    #[test]
    fn losing_a_namespace_removes_its_services() {
        let model = model(&[("shop", "web"), ("bank", "vault")]);
        let old = View::of(&model, namespaces(&["shop", "bank"]));
        let new = View::of(&model, namespaces(&["shop"]));

        let removed = Change::Removed(ObjectName::new("bank", "vault"));
        assert_eq!(old.changes_to(&new), [Change::Frame, removed]);
    }
}

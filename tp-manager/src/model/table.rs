//! The part of the model that one user may see, and the steps in which a client follows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Model, ObjectName, Service};

/// Services in one step: bounds the size of a message, and the time that the model is locked.
pub(crate) const PART: usize = 500;
/// Services in the snapshot itself: it is one message, whose buffer its stream keeps until the
/// next.
const FIRST_PART: usize = 50;

/// A table without its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) service_networks: Vec<IpNet>,
    pub(crate) pod_networks: Vec<IpNet>,
    pub(crate) services_are_covered: bool,
    /// More of the snapshot's services follow.
    pub(crate) services_follow: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The table starts over, with these of its services.
    Snapshot(Frame, Vec<(ObjectName, Arc<Service>)>),
    /// Namespaces or networks have changed. The services of a removed namespace are removed.
    Frame(Frame),
    Applied(ObjectName, Arc<Service>),
    Removed(ObjectName),
}

/// A client's position in the table: a revision of the model's log, not a copy of the table.
#[derive(Debug)]
pub(crate) struct TableCursor {
    /// Services in one step, at most.
    part: usize,
    stage: Stage,
    namespaces: BTreeSet<String>,
    /// Revision up to which changes of services were sent.
    services: u64,
    /// More of them remain.
    is_cut: bool,
    networks: u64,
    /// Namespaces whose services are being sent, and the last one sent of each.
    loading: BTreeMap<String, Option<ObjectName>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    /// A snapshot whose services were not all sent.
    Begun,
    Complete,
}

impl TableCursor {
    pub(crate) fn new(part: usize) -> Self {
        Self {
            part,
            stage: Stage::Start,
            namespaces: BTreeSet::new(),
            services: 0,
            is_cut: false,
            networks: 0,
            loading: BTreeMap::new(),
        }
    }

    pub(crate) fn is_at_start(&self) -> bool {
        self.stage == Stage::Start
    }

    /// Returns whether the last step left changes out.
    pub(crate) fn has_more(&self) -> bool {
        self.is_cut || !self.loading.is_empty()
    }

    /// A step towards the state of the model in `namespaces`. Services are sent as they are now:
    /// one that changed several times is sent once, and sending it again does no harm.
    pub(crate) fn follow(&mut self, model: &Model, namespaces: &BTreeSet<String>) -> Vec<Change> {
        if self.is_at_start() || model.log().since(self.services).is_none() {
            return vec![self.begin(model, namespaces.clone())];
        }
        let mut changes = Vec::new();
        let is_other = self.namespaces != *namespaces;
        if is_other || self.networks < model.log().networks() {
            if is_other {
                self.set_namespaces(namespaces.clone());
            }
            changes.push(Change::Frame(self.frame(model)));
        }
        self.follow_log(model, &mut changes);
        let loaded = self.load(model, self.part);
        changes.extend(
            loaded
                .into_iter()
                .map(|(name, it)| Change::Applied(name, it)),
        );
        if self.stage == Stage::Begun && !self.has_more() {
            self.stage = Stage::Complete;
            changes.push(Change::Frame(self.frame(model)));
        }

        changes
    }

    fn begin(&mut self, model: &Model, namespaces: BTreeSet<String>) -> Change {
        self.stage = Stage::Begun;
        self.namespaces.clear();
        self.loading.clear();
        self.set_namespaces(namespaces);
        self.services = model.log().revision();
        self.is_cut = false;
        let services = self.load(model, self.part.min(FIRST_PART));
        if self.loading.is_empty() {
            self.stage = Stage::Complete;
        }

        Change::Snapshot(self.frame(model), services)
    }

    /// Continues with these namespaces.
    fn set_namespaces(&mut self, namespaces: BTreeSet<String>) {
        self.loading.retain(|name, _| namespaces.contains(name));
        let new = namespaces.difference(&self.namespaces);
        self.loading.extend(new.map(|name| (name.clone(), None)));
        self.namespaces = namespaces;
    }

    fn frame(&mut self, model: &Model) -> Frame {
        self.networks = model.log().networks();

        Frame {
            namespaces: self.namespaces.clone(),
            service_networks: model.service_networks().to_vec(),
            pod_networks: model.pod_networks().to_vec(),
            services_are_covered: model.services_are_covered(),
            services_follow: self.stage == Stage::Begun,
        }
    }

    fn follow_log(&mut self, model: &Model, changes: &mut Vec<Change>) {
        let most = changes.len() + self.part;
        for (revision, name) in model.log().since(self.services).into_iter().flatten() {
            if changes.len() == most {
                self.is_cut = true;
                return;
            }
            self.services = revision;
            if !self.namespaces.contains(&name.namespace) {
                continue;
            }
            changes.push(match model.service(name) {
                Some(service) => Change::Applied(name.clone(), Arc::clone(service)),
                None => Change::Removed(name.clone()),
            });
        }
        self.services = model.log().revision();
        self.is_cut = false;
    }

    /// The next services, up to `most`, of the namespaces that are being sent.
    fn load(&mut self, model: &Model, most: usize) -> Vec<(ObjectName, Arc<Service>)> {
        let mut loaded = Vec::new();
        while loaded.len() < most
            && let Some(mut entry) = self.loading.first_entry()
        {
            let mut remaining = model.services_after(entry.key(), entry.get().as_ref());
            let part = remaining.by_ref().take(most - loaded.len());
            loaded.extend(part.map(|(name, it)| (name.clone(), Arc::clone(it))));
            let last = remaining.next().and(loaded.last());
            let last = last.map(|(name, _)| name.clone());
            drop(remaining);
            match last {
                Some(last) => drop(entry.insert(Some(last))),
                None => drop(entry.remove()),
            }
        }

        loaded
    }
}

#[cfg(test)]
mod tests;

//! The part of the model that one user may see, and how what is known of it follows the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Model, ObjectName, Service};

/// Services in one step, so that none makes a message of any size, nor holds the model for long.
pub(crate) const PART: usize = 500;
/// Of these, in the snapshot itself: it is one message, whose room its stream keeps until the next one.
const FIRST: usize = 50;

/// A table without its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) service_networks: Vec<IpNet>,
    pub(crate) pod_networks: Vec<IpNet>,
    pub(crate) services_are_covered: bool,
    /// The snapshot's services are not all told yet.
    pub(crate) services_follow: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The table begins anew, with these of its services.
    Snapshot(Frame, Vec<(ObjectName, Arc<Service>)>),
    /// Namespaces or networks are others. The services of a namespace that is gone are gone.
    Frame(Frame),
    Applied(ObjectName, Arc<Service>),
    Removed(ObjectName),
}

/// How far somebody knows the table. That is a place in the model's log, and no copy of the table.
#[derive(Debug)]
pub(crate) struct Known {
    /// Services in one step, at most.
    part: usize,
    stage: Stage,
    namespaces: BTreeSet<String>,
    /// Changes of services up to here are told.
    services: u64,
    /// There were more of them than fit.
    is_cut: bool,
    networks: u64,
    /// Namespaces whose services are being told, and the last one of each that was.
    loading: BTreeMap<String, Option<ObjectName>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    /// A snapshot whose services are not all told.
    Begun,
    Complete,
}

impl Known {
    pub(crate) fn new(part: usize) -> Self {
        Self {
            part,
            stage: Stage::Nothing,
            namespaces: BTreeSet::new(),
            services: 0,
            is_cut: false,
            networks: 0,
            loading: BTreeMap::new(),
        }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.stage == Stage::Nothing
    }

    /// Whether the last step ended before all was told.
    pub(crate) fn has_more(&self) -> bool {
        self.is_cut || !self.loading.is_empty()
    }

    /// A step towards what the model has in `namespaces`. Whatever is told is told as it is now:
    /// what changed several times is told once, and to tell it again does no harm.
    pub(crate) fn follow(&mut self, model: &Model, namespaces: &BTreeSet<String>) -> Vec<Change> {
        if self.is_nothing() || model.log().since(self.services).is_none() {
            return vec![self.begin(model, namespaces.clone())];
        }
        let mut changes = Vec::new();
        let is_other = self.namespaces != *namespaces;
        if is_other || self.networks < model.log().networks() {
            if is_other {
                self.enter(namespaces.clone());
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
        self.enter(namespaces);
        self.services = model.log().revision();
        self.is_cut = false;
        let services = self.load(model, self.part.min(FIRST));
        if self.loading.is_empty() {
            self.stage = Stage::Complete;
        }

        Change::Snapshot(self.frame(model), services)
    }

    /// Goes on with these namespaces.
    fn enter(&mut self, namespaces: BTreeSet<String>) {
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

    /// The next services of the namespaces that are being told, `most` of them.
    fn load(&mut self, model: &Model, most: usize) -> Vec<(ObjectName, Arc<Service>)> {
        let mut loaded = Vec::new();
        while loaded.len() < most
            && let Some(mut entry) = self.loading.first_entry()
        {
            let mut rest = model.services_after(entry.key(), entry.get().as_ref());
            let part = rest.by_ref().take(most - loaded.len());
            loaded.extend(part.map(|(name, it)| (name.clone(), Arc::clone(it))));
            let last = rest.next().and(loaded.last());
            let last = last.map(|(name, _)| name.clone());
            drop(rest);
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

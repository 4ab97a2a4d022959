//! A log of changes by revision: readers follow it instead of comparing tables.

use std::collections::{BTreeMap, HashMap};

use super::ObjectName;

/// Services whose latest change is kept. A reader that is further behind starts over.
const MAX_SERVICES: usize = 16_384;

#[derive(Debug)]
pub(crate) struct Log {
    capacity: usize,
    revision: u64,
    /// Each name once, at its latest change.
    services: BTreeMap<u64, ObjectName>,
    latest: HashMap<ObjectName, u64>,
    /// Changes up to this one may be missing.
    forgotten: u64,
    /// The latest change of the namespaces, and of the networks.
    namespaces: u64,
    networks: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self::with_capacity(MAX_SERVICES)
    }
}

impl Log {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            capacity,
            revision: 0,
            services: BTreeMap::new(),
            latest: HashMap::new(),
            forgotten: 0,
            namespaces: 0,
            networks: 0,
        }
    }

    pub(super) fn service_changed(&mut self, name: ObjectName) {
        self.revision += 1;
        if let Some(before) = self.latest.insert(name.clone(), self.revision) {
            self.services.remove(&before);
        }
        self.services.insert(self.revision, name);
        while self.services.len() > self.capacity
            && let Some((revision, oldest)) = self.services.pop_first()
        {
            self.latest.remove(&oldest);
            self.forgotten = revision;
        }
    }

    pub(super) fn namespaces_changed(&mut self) {
        self.revision += 1;
        self.namespaces = self.revision;
    }

    pub(super) fn networks_changed(&mut self) {
        self.revision += 1;
        self.networks = self.revision;
    }

    /// Records a change that no table shows, for other readers.
    pub(super) fn other_changed(&mut self) {
        self.revision += 1;
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn namespaces(&self) -> u64 {
        self.namespaces
    }

    pub(crate) fn networks(&self) -> u64 {
        self.networks
    }

    /// The services that changed after `revision`, in order; `None` if some of them are no longer
    /// kept.
    pub(crate) fn since(&self, revision: u64) -> Option<impl Iterator<Item = (u64, &ObjectName)>> {
        let changed = self.services.range(revision + 1..);

        (revision >= self.forgotten).then(|| changed.map(|(revision, name)| (*revision, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn since(log: &Log, revision: u64) -> Option<Vec<&str>> {
        let changed = log.since(revision)?;
        Some(changed.map(|(_, name)| name.name.as_str()).collect())
    }

    #[test]
    fn a_service_is_in_the_log_once_at_its_latest_change() {
        let mut log = Log::default();
        for changed in ["a", "b", "a"] {
            log.service_changed(name(changed));
        }

        assert_eq!(since(&log, 0), Some(vec!["b", "a"]));
        assert_eq!(since(&log, 2), Some(vec!["a"]));
        assert_eq!(since(&log, 3), Some(vec![]));
    }

    #[test]
    fn who_is_behind_a_full_log_is_told_so() {
        let mut log = Log::with_capacity(2);
        for changed in ["a", "b", "c"] {
            log.service_changed(name(changed));
        }

        assert_eq!(since(&log, 0), None);
        assert_eq!(since(&log, 1), Some(vec!["b", "c"]));
    }
}

//! The Session objects that a connection has asked the API server for, so that each is deleted when it
//! is no longer used, even if its creation was given up half-way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use futures::{StreamExt as _, stream};
use tp_process::sync;

use super::super::cluster::{Cluster, Deletion};

/// Deletions under way at once.
const PARALLEL: usize = 4;

/// The names of the objects, each with whether the API server has confirmed its creation.
#[derive(Debug, Default)]
pub(super) struct SessionObjects(Mutex<BTreeMap<String, bool>>);

impl SessionObjects {
    /// Notes that the API server is about to be asked for `name`.
    pub(super) fn begin(&self, name: &str) {
        self.lock().insert(name.to_owned(), false);
    }

    pub(super) fn answered(&self, name: &str) {
        if let Some(is_there) = self.lock().get_mut(name) {
            *is_there = true;
        }
    }

    /// Notes that the API server has refused `name`.
    pub(super) fn refused(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Deletes `name`; returns whether the API server has answered.
    pub(super) async fn delete(&self, cluster: &Cluster, name: &str) -> bool {
        let deletion = cluster.delete_session(name).await;
        self.deleted(name, deletion);

        deletion != Deletion::Failed
    }

    /// An absent object may still be created while the request for it has no answer.
    fn deleted(&self, name: &str, deletion: Deletion) {
        let mut names = self.lock();
        let is_there = names.get(name).copied().unwrap_or_default();
        if deletion == Deletion::Done || (deletion == Deletion::Absent && is_there) {
            names.remove(name);
        }
    }

    /// Deletes all of `names`, and returns those for which the API server had no answer.
    pub(super) async fn delete_all(
        &self,
        cluster: &Cluster,
        names: BTreeSet<String>,
    ) -> BTreeSet<String> {
        let deletions = stream::iter(names).map(|name| async move {
            let is_answered = self.delete(cluster, &name).await;
            (!is_answered).then_some(name)
        });
        let unanswered = deletions.buffer_unordered(PARALLEL);

        unanswered.filter_map(async |name| name).collect().await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        sync::lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_is_deleted_once_more() {
        let objects = SessionObjects::default();
        objects.begin("a");

        objects.deleted("a", Deletion::Absent);
        objects.deleted("a", Deletion::Failed);
        assert_eq!(objects.names().len(), 1);

        objects.answered("a");
        objects.deleted("a", Deletion::Absent);
        assert!(objects.names().is_empty());
        objects.begin("b");
        objects.deleted("b", Deletion::Done);
        assert!(objects.names().is_empty());
    }
}

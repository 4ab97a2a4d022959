//! The Session objects that a connection has asked the API server for, so that each is deleted when
//! it serves nobody any more, also one whose making was given up half-way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, stream};

use super::super::cluster::{Cluster, Deletion};

/// Deletions under way at once.
const PARALLEL: usize = 4;

/// Their names, and whether the API server has said that it made them.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<BTreeMap<String, bool>>);

impl Made {
    /// The API server is about to be asked for it.
    pub(super) fn begin(&self, name: &str) {
        self.lock().insert(name.to_owned(), false);
    }

    pub(super) fn answered(&self, name: &str) {
        if let Some(is_there) = self.lock().get_mut(name) {
            *is_there = true;
        }
    }

    /// The API server has refused it.
    pub(super) fn refused(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Whether the API server has answered.
    pub(super) async fn delete(&self, cluster: &Cluster, name: &str) -> bool {
        let deletion = cluster.delete_session(name).await;
        self.deleted(name, deletion);

        deletion != Deletion::Failed
    }

    /// What is not there may still come, while whoever asked for it has no answer.
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_is_deleted_once_more() {
        let made = Made::default();
        made.begin("a");

        made.deleted("a", Deletion::Absent);
        made.deleted("a", Deletion::Failed);
        assert_eq!(made.names().len(), 1);

        made.answered("a");
        made.deleted("a", Deletion::Absent);
        assert!(made.names().is_empty());
        made.begin("b");
        made.deleted("b", Deletion::Done);
        assert!(made.names().is_empty());
    }
}

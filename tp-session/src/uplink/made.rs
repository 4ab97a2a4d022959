//! The Session objects that a connection has asked the API server for, so that each is deleted when
//! it serves nobody any more, also one whose making was given up half-way.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::future::join_all;

use super::super::cluster::Cluster;

/// Their names.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<BTreeSet<String>>);

impl Made {
    /// The API server is about to be asked for it.
    pub(super) fn begin(&self, name: &str) {
        self.lock().insert(name.to_owned());
    }

    /// The API server has refused it.
    pub(super) fn refused(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.lock().clone()
    }

    pub(super) async fn delete(&self, cluster: &Cluster, name: &str) {
        if cluster.delete_session(name).await {
            self.lock().remove(name);
        }
    }

    /// Deletes all of `names`, at once; what cannot be deleted is kept for another time.
    pub(super) async fn delete_all(&self, cluster: &Cluster, names: &BTreeSet<String>) {
        join_all(names.iter().map(|name| self.delete(cluster, name))).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The model, shared: the index writes it, everything else looks at it.

use std::{
    net::IpAddr,
    sync::{PoisonError, RwLock},
};

use tokio::sync::watch;

use crate::model::Cluster;

/// The cluster as last seen, and a tick for every change.
#[derive(Debug, Default)]
pub(crate) struct View {
    cluster: RwLock<Cluster>,
    changes: watch::Sender<u64>,
}

impl View {
    /// Looks at the cluster; the closure must be short, for changes wait for it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        look(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn change(&self, apply: impl FnOnce(&mut Cluster)) {
        apply(&mut self.cluster.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|tick| *tick += 1);
    }

    /// Ticks after every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The nodes' addresses for candidates of path U: external ones first, then `preferred`.
    pub(crate) fn node_addresses(&self, preferred: Option<IpAddr>) -> Vec<IpAddr> {
        self.read(|cluster| {
            let nodes = || cluster.nodes.values();
            let mut internal: Vec<IpAddr> =
                nodes().flat_map(|node| node.internal.iter().copied()).collect();
            internal.sort_by_key(|address| Some(*address) != preferred);

            nodes().flat_map(|node| node.external.iter().copied()).chain(internal).collect()
        })
    }
}

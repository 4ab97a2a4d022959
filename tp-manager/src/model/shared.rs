//! The model as all parts of the manager share it.

use std::sync::{Arc, RwLock, RwLockReadGuard};

use tokio::sync::{Notify, Semaphore, watch};

use super::Model;

/// The model, shared by its readers; every change in the log increments `revision`.
#[derive(Debug, Clone)]
pub(crate) struct SharedModel {
    pub(super) inner: Arc<RwLock<Model>>,
    revision: watch::Sender<u64>,
    /// Notified of every update, also of those not in the log.
    pub(super) updated: Arc<Notify>,
    /// Permits to wait for an update.
    pub(super) waiting: Arc<Semaphore>,
}

/// Connections that wait at once for the owner of their address: each checks every update.
const MAX_WAITING: usize = 256;

impl SharedModel {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::default(),
            revision: watch::Sender::new(0),
            updated: Arc::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Model> {
        tp_process::sync::read(&self.inner)
    }

    /// Several updates in one are settled and published once.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Model)) {
        let mut model = tp_process::sync::write(&self.inner);
        change(&mut model);
        model.settle();
        let new = model.log.revision();
        drop(model);
        self.updated.notify_waiters();
        self.revision.send_if_modified(|revision| {
            let is_new = *revision < new;
            *revision = new.max(*revision);
            is_new
        });
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

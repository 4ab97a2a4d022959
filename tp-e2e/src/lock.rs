//! Locks between tests of one program that cannot run at the same time.
//!
//! Snapshots compare the whole machine, and changes to the network, to resolv.conf, to a manager or
//! to a fixed port affect every session.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// For a test during which no other test with a lock may run.
#[must_use = "others run once the guard is dropped"]
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that may run beside all others but those with [`alone`].
#[must_use = "others disturb once the guard is dropped"]
pub fn undisturbed() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

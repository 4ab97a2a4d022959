//! Which tests of one program may run at the same moment.
//!
//! Snapshots compare the whole machine, and what is done to the network, to resolv.conf, to a
//! manager or to a fixed port concerns every session.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// For a test beside which no other that takes the lock may run.
#[must_use = "others run once the guard is dropped"]
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that others may run beside, but for those that run [`alone`].
#[must_use = "others disturb once the guard is dropped"]
pub fn undisturbed() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

//! Locks that ignore poisoning: every change under them is complete before anything can panic, so a
//! panic of the holder leaves the value valid.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks a mutex, poisoned or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading, poisoned or not.
pub fn read<T>(rw_lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    rw_lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing, poisoned or not.
pub fn write<T>(rw_lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    rw_lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn panic_with_lock(mutex: &Mutex<u32>) {
        *lock(mutex) = 2;
        let _guard = lock(mutex);
        panic!("on purpose");
    }

    #[test]
    fn a_lock_whose_holder_panicked_can_be_taken() {
        let mutex = Mutex::new(1);

        let ended = thread::scope(|scope| scope.spawn(|| panic_with_lock(&mutex)).join());

        assert!(ended.is_err());
        assert!(mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 2);
    }
}

//! The table of leases of a redirected pod, which its kernel program reads.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::time::{ClockId, clock_gettime};
use tp_agent_api::{LeaseState, MAX_PORTS};
use tp_process::SharedWords;

use crate::plan::BootTime;

/// Words of an element.
const ELEMENT: usize = 2;

/// The mapped table.
pub(crate) struct LeaseTable(SharedWords);

impl LeaseTable {
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        Ok(Self(SharedWords::map(fd, MAX_PORTS * ELEMENT)?))
    }

    /// Renews the lease with this index; one that does not exist has no port.
    pub(crate) fn renew(&self, index: u32, state: LeaseState, renewed: BootTime) {
        let at = index as usize * ELEMENT;
        let Some([time, word]) = self.0.as_slice().get(at..at + ELEMENT) else {
            return;
        };
        let [a, b, c, d] = (state as u32).to_ne_bytes();
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Release);
        // A lease that is over gets its state before it lasts again.
        store(word, u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]));
        store(time, renewed);
    }
}

/// The time that leases are in.
pub(crate) fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());

    seconds * 1_000_000_000 + nanoseconds
}

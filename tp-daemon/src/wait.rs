//! Waiting for conditions that the kernel sends no notification for.

use std::{thread, time::Duration};

/// Blocks this thread for `duration`, where no descriptor becomes ready.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing is notified when descriptors, memory or a namespace are free again"
)]
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration);
}

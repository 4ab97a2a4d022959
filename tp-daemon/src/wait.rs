//! Waiting for what the kernel tells nobody of.

use std::{thread, time::Duration};

/// Blocks this thread for so long. For conditions that no descriptor becomes ready for.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing is notified when descriptors, memory or a namespace are free again"
)]
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration);
}

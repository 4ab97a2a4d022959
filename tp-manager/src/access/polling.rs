//! The interval at which tables review rights again: it bounds the load of the API server by all
//! tables.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use super::{Access, User, lock};

/// The interval's part for each polled right of all tables: 200 reviews a second.
pub(super) const RIGHT_INTERVAL: Duration = Duration::from_millis(5);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// The polls of one user, whose tables all review the same rights.
#[derive(Debug, Default)]
pub(super) struct UserPolls {
    tables: usize,
    count: usize,
}

/// Rights that a table polls, until dropped.
pub(crate) struct PolledRights {
    access: Arc<Access>,
    user: [u8; 32],
}

impl Drop for PolledRights {
    fn drop(&mut self) {
        let mut polled = lock(&self.access.polled);
        if let Entry::Occupied(mut asked) = polled.entry(self.user) {
            asked.get_mut().tables -= 1;
            if asked.get().tables == 0 {
                asked.remove();
            }
        }
    }
}

impl Access {
    /// Counts `count` rights that a table polls, and returns the interval for it.
    pub(crate) fn start_polling(
        self: &Arc<Self>,
        user: &User,
        count: usize,
    ) -> (PolledRights, Duration) {
        let mut polled = lock(&self.polled);
        let asked = polled.entry(user.fingerprint).or_default();
        asked.tables += 1;
        asked.count = count;
        let all: usize = polled.values().map(|asked| asked.count).sum();
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let counted = PolledRights {
            access: Arc::clone(self),
            user: user.fingerprint,
        };

        (
            counted,
            RIGHT_INTERVAL.saturating_mul(all).min(MAX_INTERVAL),
        )
    }
}

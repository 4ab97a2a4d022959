//! How often tables ask for rights again: together they cost the API server no more than it can bear.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use super::{Access, User, lock};

/// What one right may cost the API server that is asked for again and again, for all tables: 200
/// reviews a second.
pub(super) const PER_QUESTION: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The tables of one user ask the same.
#[derive(Debug, Default)]
pub(super) struct Asked {
    tables: usize,
    count: usize,
}

/// Rights that a table asks for again and again.
pub(crate) struct Questions {
    access: Arc<Access>,
    user: [u8; 32],
}

impl Drop for Questions {
    fn drop(&mut self) {
        let mut questions = lock(&self.access.questions);
        if let Entry::Occupied(mut asked) = questions.entry(self.user) {
            asked.get_mut().tables -= 1;
            if asked.get().tables == 0 {
                asked.remove();
            }
        }
    }
}

impl Access {
    /// Counts rights that are asked for again and again, and says how often that may be.
    pub(crate) fn questions(self: &Arc<Self>, user: &User, count: usize) -> (Questions, Duration) {
        let mut questions = lock(&self.questions);
        let asked = questions.entry(user.fingerprint).or_default();
        asked.tables += 1;
        asked.count = count;
        let all: usize = questions.values().map(|asked| asked.count).sum();
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let counted = Questions {
            access: Arc::clone(self),
            user: user.fingerprint,
        };

        (counted, PER_QUESTION.saturating_mul(all).min(LONGEST_PAUSE))
    }
}

//! How often something is handed out that stays when its request is answered: memory, descriptors.

use std::time::{Duration, Instant};

/// A bucket of tokens, of which one comes back each `interval`.
pub(crate) struct Handouts {
    interval: Duration,
    burst: u32,
    /// When the bucket is full again.
    full_at: Instant,
}

impl Handouts {
    pub(crate) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            burst,
            full_at: now,
        }
    }

    /// Takes a token, if there is one.
    #[must_use]
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.interval;
        let has_one = full_at - now <= self.interval * self.burst;
        if has_one {
            self.full_at = full_at;
        }

        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_out_at_once_comes_back_one_by_one() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut handouts = Handouts::new(3, Duration::from_millis(100), start);

        let taken = |handouts: &mut Handouts, millis| {
            let times = (0..10).filter(|_| handouts.take(at(millis)));
            times.count()
        };
        assert_eq!(taken(&mut handouts, 0), 3);
        assert_eq!(taken(&mut handouts, 99), 0);
        assert_eq!(taken(&mut handouts, 200), 2);
        assert_eq!(taken(&mut handouts, 60_000), 3);
    }
}

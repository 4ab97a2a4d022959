//! Growing pauses between attempts.

use std::time::Duration;

/// Pauses that double up to a limit.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// The first pause lasts `first`; none lasts longer than `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// The pause before the next attempt. `jitter` in 0..=1 takes up to a quarter off, so that many
    /// clients of one failed server do not come back at once.
    pub fn pause(&mut self, jitter: f64) -> Duration {
        let pause = self.next;
        self.next = self.most.min(self.next * 2);

        pause.mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0))
    }

    /// An attempt succeeded: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_most() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 300, 300]);

        backoff.reset();
        assert_eq!(backoff.pause(1.0).as_millis(), 75);
    }
}

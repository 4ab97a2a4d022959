//! The largest value of the last round trips.

/// Round trips that are remembered (MaxBwFilterLen and ExtraAckedFilterLen of
/// draft-ietf-ccwg-bbr-06 sections 2.11 and 2.12; the draft counts the first in probe cycles, which
/// this controller does not have).
const ROUNDS: usize = 10;

#[derive(Debug, Clone, Default)]
pub(super) struct MaxFilter {
    rounds: [f64; ROUNDS],
    current: usize,
}

impl MaxFilter {
    pub(super) fn get(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }

    /// The largest of the current round trip and the one before.
    pub(super) fn latest(&self) -> f64 {
        let before = (self.current + ROUNDS - 1) % ROUNDS;

        self.rounds[self.current].max(self.rounds[before])
    }

    /// Forgets all but [`Self::latest`].
    pub(super) fn keep_latest(&mut self) {
        self.replace(self.latest());
    }

    /// Forgets all but `value`.
    pub(super) fn replace(&mut self, value: f64) {
        self.rounds = [0.0; ROUNDS];
        self.rounds[self.current] = value;
    }

    pub(super) fn update(&mut self, value: f64) {
        self.rounds[self.current] = self.rounds[self.current].max(value);
    }

    /// A round trip has ended; the oldest is forgotten.
    pub(super) fn advance(&mut self) {
        self.current = (self.current + 1) % ROUNDS;
        self.rounds[self.current] = 0.0;
    }
}

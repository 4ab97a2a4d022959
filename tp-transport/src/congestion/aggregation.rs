//! ACK aggregation (draft-ietf-ccwg-bbr-06 section 5.5.9): the bytes acknowledged above the
//! estimated rate, since the ACKs were last behind it.

use std::time::Instant;

use super::filter::MaxFilter;

#[derive(Debug, Clone)]
pub(super) struct Aggregation {
    since: Instant,
    delivered: u64,
    extra: MaxFilter,
}

impl Aggregation {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            delivered: 0,
            extra: MaxFilter::default(),
        }
    }

    /// Bytes by which ACKs were ahead of the rate, in the last round trips.
    pub(super) fn extra(&self) -> f64 {
        self.extra.get()
    }

    pub(super) fn update(&mut self, now: Instant, acked: u64, rate: f64, window: u64) {
        let expected = rate * now.saturating_duration_since(self.since).as_secs_f64();
        if self.delivered as f64 <= expected {
            self.since = now;
            self.delivered = acked;
            self.extra.update(acked as f64);
            return;
        }
        self.delivered += acked;
        let extra = self.delivered as f64 - expected;
        self.extra.update(extra.min(window as f64));
    }

    pub(super) fn advance(&mut self) {
        self.extra.advance();
    }
}

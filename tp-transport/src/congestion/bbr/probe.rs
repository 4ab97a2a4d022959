//! When and how the window is lowered to see the path without a queue (ProbeRTT of the draft, section
//! 5.3.4).

use std::time::{Duration, Instant};

use super::{
    super::{
        rate::Sample,
        round::{Round, lower},
    },
    Bbr, MIN_RTT_LIFETIME, PROBE_RTT_GAIN, PROBE_RTT_INTERVAL, PROBE_RTT_PAUSE, SOON, State,
    WINDOW_GAIN,
};

impl Bbr {
    pub(super) fn wants_probe(&mut self, now: Instant, round: &Round) -> bool {
        let since = now.saturating_duration_since(self.probe_rtt_at);

        since >= PROBE_RTT_INTERVAL
            || self.soon.is_some_and(|round| self.rounds >= round)
            || self.is_long(round) && since >= self.probe_rtt_pause
    }

    /// Whether all of a round trip waited longer than the window accounts for.
    pub(super) fn is_long(&self, round: &Round) -> bool {
        let expected = self.base_rtt().mul_f64(WINDOW_GAIN)
            + self.allowance()
            + Duration::from_secs_f64(self.min_window() as f64 / self.max_rate.get().max(1.0));

        round
            .lowest_rtt
            .is_some_and(|lowest| lowest > expected.mul_f64(1.5))
    }

    pub(super) fn drain(&mut self, now: Instant) {
        // Of a path that has become slower, a part of what used to fit would fill the queue.
        let bytes = self.max_rate.latest() * self.base_rtt().as_secs_f64() * PROBE_RTT_GAIN;
        let window = (bytes as u64).max(self.min_window());
        let patience = self
            .round
            .lowest_rtt
            .unwrap_or_default()
            .max(self.base_rtt());
        self.soon = None;
        self.probed_rtt = self.base_rtt();
        self.state = State::Drain {
            window,
            until: now + 4 * patience.max(self.allowance()),
        };
    }

    pub(super) fn probe_rtt(&mut self, now: Instant, sample: &Sample, in_flight: u64) {
        match self.state {
            State::Drain { window, until } if in_flight <= window || now >= until => {
                let rtt = sample.rtt.max(self.allowance());
                self.state = State::ProbeRtt {
                    window,
                    since: now,
                    until: now + 4 * rtt,
                    end_delivered: self.sampler.delivered() + in_flight,
                    lowest: None,
                };
            }
            State::ProbeRtt {
                window,
                since,
                until,
                end_delivered,
                lowest,
            } => {
                let is_new = sample.sent >= since;
                let lowest = if is_new {
                    Some(lower(lowest, sample.rtt))
                } else {
                    lowest
                };
                self.state = State::ProbeRtt {
                    window,
                    since,
                    until,
                    end_delivered,
                    lowest,
                };
                let has_ended = is_new && sample.prior_delivered >= end_delivered;
                if has_ended || now >= until {
                    self.rates_from = now + 2 * sample.rtt + self.allowance();
                    self.end_probe(now, lowest);
                }
            }
            _ => {}
        }
    }

    fn end_probe(&mut self, now: Instant, lowest: Option<Duration>) {
        self.state = State::Cruise;
        self.is_up_due = true;
        self.probe_rtt_at = now;
        let Some(lowest) = lowest else {
            return;
        };
        let base = self.base_rtt();
        if lowest <= base.mul_f64(1.125) + Duration::from_millis(1) {
            self.contradictions = 0;
            self.min_rtt_at = now;
            self.probe_rtt_pause = (2 * self.probe_rtt_pause).min(PROBE_RTT_INTERVAL);
            if self.probed_rtt > base.mul_f64(1.125) {
                // Less in flight has shown a shorter path: the next may show more of it.
                self.soon = Some(self.rounds + SOON);
            }
            return;
        }
        self.contradictions += 1;
        self.probe_rtt_pause = PROBE_RTT_PAUSE;
        let is_old = now.saturating_duration_since(self.min_rtt_at) >= MIN_RTT_LIFETIME;
        if self.contradictions >= 2 || is_old {
            self.contradictions = 0;
            self.min_rtt = Some(lowest);
            self.min_rtt_at = now;
        } else {
            self.soon = Some(self.rounds + SOON);
        }
    }
}

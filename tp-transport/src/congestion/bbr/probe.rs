//! Lowers the window at times to measure the path without a queue (ProbeRTT of the draft, section
//! 5.3.4).

use std::time::{Duration, Instant};

use super::{
    super::{
        rate::Sample,
        round::{Round, lower},
    },
    Bbr, MIN_PROBE_RTT_INTERVAL, MIN_RTT_LIFETIME, PROBE_RTT_GAIN, PROBE_RTT_INTERVAL,
    REPROBE_ROUNDS, State, WINDOW_GAIN,
};

impl Bbr {
    pub(super) fn wants_probe(&mut self, now: Instant, round: &Round) -> bool {
        let since = now.saturating_duration_since(self.probe_rtt_at);

        since >= PROBE_RTT_INTERVAL
            || self.reprobe_round.is_some_and(|round| self.rounds >= round)
            || self.is_long(round) && since >= self.probe_rtt_interval
    }

    /// True if all packets of a round trip waited longer than the window accounts for.
    pub(super) fn is_long(&self, round: &Round) -> bool {
        let expected = self.base_rtt().mul_f64(WINDOW_GAIN)
            + self.allowance()
            + Duration::from_secs_f64(self.min_window() as f64 / self.max_rate.get().max(1.0));

        round
            .lowest_rtt
            .is_some_and(|lowest| lowest > expected.mul_f64(1.5))
    }

    pub(super) fn drain(&mut self, now: Instant) {
        // On a path that has become slower, even a part of its earlier capacity would fill the queue.
        let bytes = self.max_rate.latest() * self.base_rtt().as_secs_f64() * PROBE_RTT_GAIN;
        let window = (bytes as u64).max(self.min_window());
        let round_trip = self
            .round
            .lowest_rtt
            .unwrap_or_default()
            .max(self.base_rtt());
        self.reprobe_round = None;
        self.probed_rtt = self.base_rtt();
        self.state = State::Drain {
            window,
            until: now + 4 * round_trip.max(self.allowance()),
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
            self.probe_rtt_interval = (2 * self.probe_rtt_interval).min(PROBE_RTT_INTERVAL);
            if self.probed_rtt > base.mul_f64(1.125) {
                // Fewer bytes in flight have shown a shorter path: the next probe may show more.
                self.reprobe_round = Some(self.rounds + REPROBE_ROUNDS);
            }
            return;
        }
        self.contradictions += 1;
        self.probe_rtt_interval = MIN_PROBE_RTT_INTERVAL;
        let is_old = now.saturating_duration_since(self.min_rtt_at) >= MIN_RTT_LIFETIME;
        if self.contradictions >= 2 || is_old {
            self.contradictions = 0;
            self.min_rtt = Some(lowest);
            self.min_rtt_at = now;
        } else {
            self.reprobe_round = Some(self.rounds + REPROBE_ROUNDS);
        }
    }
}

//! The controller of the UDP path: a model of the path as in draft-ietf-ccwg-bbr-06 (BBRv3). It
//! controls only the window: QUIC's pacer always sends `1.25 · window / smoothed RTT`. So these parts
//! differ from the draft:
//!
//! - The window is `max_bw · (1.25 · min_rtt + allowance)`. As it is above what fits in the path,
//!   the delivery rate rises by itself when the path gets faster; the queue that it leaves standing
//!   is the allowance and a quarter of `min_rtt`.
//! - ProbeRTT (section 5.3.4) is one round trip at a quarter of what fits, every two seconds. Its
//!   result replaces a `min_rtt` that it contradicts twice: the path got longer, or other flows fill
//!   the queue; counting their queue in keeps the share next to them.
//! - The rate grows by an eighth at most in a round trip, and packets sent after a pause give no rate:
//!   where the ends get no processor for longer than the window lasts, the path's token bucket fills,
//!   and passes what follows at several times the path's rate.
//! - ProbeBW_UP (section 5.3.3) follows each ProbeRTT at a gain of 2, for as long as the rate grows.

use std::time::{Duration, Instant};

use super::{
    aggregation::Aggregation,
    filter::MaxFilter,
    rate::{Sample, Sampler},
    round::{Round, lower},
};

mod probe;

/// Datagrams in flight at the beginning (RFC 9002 section 7.2).
const INITIAL_DATAGRAMS: u64 = 10;
/// MinPipeCwnd, section 2.8; also what is added to a window, so that flows of one path converge.
const MIN_DATAGRAMS: u64 = 4;
/// The window's part above the bandwidth-delay product: enough that the rate grows by itself.
const WINDOW_GAIN: f64 = 1.25;
/// Startup doubles in each round (section 5.3.1).
const STARTUP_GAIN: f64 = 2.0;
/// Part of the window that an application has in flight at least if it may fill a queue.
const LIMITED_PART: u64 = 4;
/// A path that is slower than known by this factor counts as another one.
const MUCH_SLOWER: f64 = 4.0;
/// Largest growth of the rate in a round trip, once it is known.
const RATE_GROWTH: f64 = 1.125;
/// Time for which the window covers ACKs that come late or together, and ends that are busy.
const ALLOWANCE: Duration = Duration::from_millis(4);
/// The most that measured aggregation of ACKs adds (section 5.5.9).
const MAX_ALLOWANCE: Duration = Duration::from_millis(8);
/// MinRTTFilterLen, section 2.16.1.
const MIN_RTT_LIFETIME: Duration = Duration::from_secs(10);
const PROBE_RTT_INTERVAL: Duration = Duration::from_secs(2);
/// The draft's ProbeRTTCwndGain is a half. Our bytes left in a queue count as part of the path, so
/// with fewer of them other flows keep more of their share.
const PROBE_RTT_GAIN: f64 = 0.25;
/// Rounds between a probe that contradicts and the next.
const REPROBE_ROUNDS: u64 = 4;
/// Between probes because of long round trips, at first; doubles up to [`PROBE_RTT_INTERVAL`].
const MIN_PROBE_RTT_INTERVAL: Duration = Duration::from_millis(250);
/// LossThresh, section 2.8.
const LOSS_THRESHOLD: f64 = 0.02;
/// Lost packets that count as chance where few were sent.
const CHANCE_LOSSES: f64 = 2.0;
/// Packets after which the share of losses is meaningful.
const MIN_JUDGED: u64 = 50;
/// Remaining part of the window after a round with too many losses, or with ECN marks (RFC 8511).
const LOSS_GAIN: f64 = 0.85;
/// The bound that losses have set stays for so long before it is raised.
const RAISE_BOUND_AFTER: Duration = Duration::from_millis(300);
/// Startup ends when the rate grew by less than a quarter in three rounds (section 5.3.1.2).
const FULL_GROWTH: f64 = 1.25;
const FULL_ROUNDS: u32 = 3;
/// While probing whether the path, or other flows on it, leave room for more.
const PROBE_UP_GAIN: f64 = 2.0;
/// Probing goes on after a round in which the rate grew by this.
const PROBE_UP_GROWTH: f64 = 1.1;
/// Rounds until packets sent at the higher gain are measured, and at most.
const PROBE_UP_ROUNDS: std::ops::Range<u32> = 2..6;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Doubles until the rate stays, a queue stands, or packets are lost.
    Startup {
        best_rate: f64,
        rounds: u32,
    },
    Cruise,
    /// Probes for more bandwidth.
    Up {
        rate: f64,
        rounds: u32,
    },
    /// Waits until what is in flight has come down to `window`.
    Drain {
        window: u64,
        until: Instant,
    },
    /// Measures for a round trip with `window` in flight.
    ProbeRtt {
        window: u64,
        since: Instant,
        until: Instant,
        end_delivered: u64,
        lowest: Option<Duration>,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Bbr {
    mtu: u64,
    sampler: Sampler,
    state: State,
    window: u64,
    max_rate: MaxFilter,
    /// Upper bound of `max_rate`, and since when.
    rate_limit: (f64, Instant),
    /// Packets sent before it give no rate: after a probe, or a pause, the token buckets of the path
    /// are full, and the burst that they pass does not measure the path.
    rates_from: Instant,
    min_rtt: Option<Duration>,
    /// When `min_rtt` was last measured with nothing of ours in the queue.
    min_rtt_at: Instant,
    /// Probes in a row that found a longer round trip.
    contradictions: u32,
    probe_rtt_at: Instant,
    probe_rtt_interval: Duration,
    /// `min_rtt` when the probe began.
    probed_rtt: Duration,
    /// The round in which to probe again.
    reprobe_round: Option<u64>,
    is_up_due: bool,
    round: Round,
    /// Rounds since the beginning.
    rounds: u64,
    aggregation: Aggregation,
    /// The bytes in flight that losses allow (inflight_longterm, section 5.5.10), and since when.
    bound: Option<(u64, Instant)>,
    bound_step: u64,
    /// Losses of packets sent before it were answered.
    answered: Instant,
    acked: u64,
    last_sent: Instant,
}

impl Bbr {
    pub(super) fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);

        Self {
            mtu,
            sampler: Sampler::new(now),
            state: State::Startup {
                best_rate: 0.0,
                rounds: 0,
            },
            window: INITIAL_DATAGRAMS * mtu,
            max_rate: MaxFilter::default(),
            rate_limit: (f64::INFINITY, now),
            rates_from: now,
            min_rtt: None,
            min_rtt_at: now,
            contradictions: 0,
            probe_rtt_at: now,
            probe_rtt_interval: MIN_PROBE_RTT_INTERVAL,
            probed_rtt: Duration::ZERO,
            reprobe_round: None,
            is_up_due: false,
            round: Round::new(0, 0),
            rounds: 0,
            aggregation: Aggregation::new(now),
            bound: None,
            bound_step: 1,
            answered: now,
            acked: 0,
            last_sent: now,
        }
    }

    pub(super) fn initial_window(&self) -> u64 {
        INITIAL_DATAGRAMS * self.mtu
    }

    pub(super) fn window(&self) -> u64 {
        let bounded = match self.bound {
            Some((bound, _)) => self.window.min(bound),
            None => self.window,
        };
        match self.state {
            State::Startup { .. } | State::Cruise | State::Up { .. } => bounded,
            State::Drain { window, .. } | State::ProbeRtt { window, .. } => bounded.min(window),
        }
        .max(self.min_window())
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> u64 {
        self.sampler.in_flight()
    }

    pub(super) fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        let was_idle =
            self.sampler.in_flight() == 0 && now >= self.last_sent + self.base_rtt() + ALLOWANCE;
        if was_idle && !self.is_starting() {
            let rates_from = now + self.base_rtt() + self.allowance();
            self.rates_from = self.rates_from.max(rates_from);
        }
        self.last_sent = now;
        self.sampler.sent(now, bytes);
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.sampler.acked(now, sent, bytes);
        self.acked += bytes;
    }

    pub(super) fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool) {
        let acked = std::mem::take(&mut self.acked);
        let min_rtt = self.min_rtt.unwrap_or_default();
        let Some(sample) = self.sampler.end_acks(now, in_flight, app_limited, min_rtt) else {
            return;
        };
        self.learn_rtt(now, &sample);
        self.learn_rate(&sample);
        let rate = self.max_rate.get();
        self.aggregation.update(now, acked, rate, self.window);
        self.round.is_app_limited |= sample.is_app_limited;
        self.round.most_in_flight = self.round.most_in_flight.max(in_flight);
        if sample.prior_delivered >= self.round.end_delivered {
            self.end_round(now);
        }
        self.probe_rtt(now, &sample, in_flight);
        self.set_window(acked, app_limited);
    }

    pub(super) fn on_lost(&mut self, now: Instant, sent: Instant, bytes: u64, is_persistent: bool) {
        if is_persistent {
            self.start_again(now);
        } else if bytes == 0 {
            // ECN marks: answered once for all that was in flight.
            if sent > self.answered {
                self.lower_bound(now);
            }
        } else if sent > self.answered {
            self.round.lost += bytes;
        }
    }

    /// Persistent congestion (RFC 9002 section 7.6.2).
    fn start_again(&mut self, now: Instant) {
        self.window = self.min_window();
        self.max_rate = MaxFilter::default();
        self.bound = None;
        self.answered = now;
        let delivered = self.sampler.delivered();
        self.round = Round::new(delivered, delivered);
        self.state = State::Startup {
            best_rate: 0.0,
            rounds: 0,
        };
    }

    fn min_window(&self) -> u64 {
        MIN_DATAGRAMS * self.mtu
    }

    fn learn_rtt(&mut self, now: Instant, sample: &Sample) {
        self.round.lowest_rtt = Some(lower(self.round.lowest_rtt, sample.rtt));
        if self.min_rtt.is_none_or(|min_rtt| sample.rtt <= min_rtt) {
            self.min_rtt = Some(sample.rtt);
            self.min_rtt_at = now;
            self.contradictions = 0;
        }
    }

    fn learn_rate(&mut self, sample: &Sample) {
        let Some(rate) = sample.rate.filter(|_| sample.sent >= self.rates_from) else {
            return;
        };
        if !sample.is_app_limited || rate > self.max_rate.get() {
            self.max_rate.update(rate.min(self.rate_limit.0));
            self.round.has_rate = true;
        } else {
            self.round.limited_rate = self.round.limited_rate.max(rate);
        }
    }

    /// Behind a standing queue an application's rate is the path's, though it sends less than it may:
    /// after the path has become slower, its reader's window is smaller than our old window, and would
    /// fill the queue for good. This does not hold for an application that sends little.
    fn learn_from_queue(&mut self, round: &Round) {
        let fills = round.most_in_flight >= self.window / LIMITED_PART;
        // Next to other flows that fill the queue its rate is a share, less than the path's.
        let is_slower =
            round.limited_rate > 0.0 && round.limited_rate * MUCH_SLOWER < self.max_rate.get();
        if fills && is_slower && round.is_app_limited && self.is_long(round) {
            self.max_rate.replace(round.limited_rate);
        }
    }

    fn limit_rate(&mut self, now: Instant, round: &Round) {
        // The rate of an application that sends little does not measure the path.
        let is_measured = round.has_rate && !round.is_app_limited;
        if self.is_starting() {
            self.rate_limit = (f64::INFINITY, now);
        } else if is_measured && now >= self.rate_limit.1 + ALLOWANCE {
            // A shorter round trip means a path without a queue.
            self.rate_limit = (self.max_rate.get() * RATE_GROWTH, now);
        }
    }

    fn end_round(&mut self, now: Instant) {
        let delivered = self.sampler.delivered();
        let round = self.round;
        self.rounds += 1;
        let judged = delivered - round.start_delivered + round.lost;
        let is_excess =
            round.lost as f64 > LOSS_THRESHOLD * judged as f64 + CHANCE_LOSSES * self.mtu as f64;
        // After a switch the bytes in flight on the other path are included; they do not count here.
        let in_flight = self.sampler.in_flight().min(self.window);
        self.round = Round::new(delivered, delivered + in_flight);
        if judged < MIN_JUDGED * self.mtu && !is_excess {
            // Too few to judge: added to those of the next round.
            self.round.lost = round.lost;
            self.round.start_delivered = round.start_delivered;
        }
        if is_excess {
            self.lower_bound(now);
        } else {
            self.raise_bound(now);
        }
        self.judge_startup(&round, is_excess);
        self.judge_up(now, &round, is_excess);
        if self.state == State::Cruise {
            self.learn_from_queue(&round);
        }
        let is_probing = matches!(self.state, State::Drain { .. } | State::ProbeRtt { .. });
        if !is_probing && !round.is_app_limited {
            if self.state == State::Cruise && self.is_long(&round) {
                // With a standing queue the latest rate is the path's; an older one that was higher,
                // by the tokens of a bucket or before the path became slower, would keep the queue
                // for ten of its long round trips.
                self.max_rate.keep_latest();
            }
            // Rounds in which pauses or probes prevent measuring do not age the filter.
            if round.has_rate {
                self.max_rate.advance();
            }
            self.aggregation.advance();
        }
        self.limit_rate(now, &round);
        if self.state == State::Cruise && !round.is_app_limited && self.wants_probe(now, &round) {
            self.drain(now);
        }
    }

    fn judge_startup(&mut self, round: &Round, is_excess: bool) {
        let State::Startup { best_rate, rounds } = self.state else {
            return;
        };
        let rate = self.max_rate.get();
        let has_grown = rate >= best_rate * FULL_GROWTH;
        let rounds = match (has_grown, round.is_app_limited) {
            (true, _) => 0,
            (false, true) => rounds,
            (false, false) => rounds + 1,
        };
        let best_rate = if has_grown { rate } else { best_rate };
        let is_queue_standing = round
            .lowest_rtt
            .is_some_and(|lowest| lowest > self.base_rtt().mul_f64(1.5) + ALLOWANCE);
        self.state = match is_excess || rounds >= FULL_ROUNDS || is_queue_standing {
            true => State::Cruise,
            false => State::Startup { best_rate, rounds },
        };
    }

    fn judge_up(&mut self, now: Instant, round: &Round, is_excess: bool) {
        let best = self.max_rate.get();
        self.state = match self.state {
            State::Up { .. } if is_excess => State::Cruise,
            State::Up { rate, rounds } if rounds + 1 < PROBE_UP_ROUNDS.start => State::Up {
                rate,
                rounds: rounds + 1,
            },
            State::Up { rate, rounds } => {
                let has_grown = best >= rate * PROBE_UP_GROWTH;
                match has_grown && rounds + 1 < PROBE_UP_ROUNDS.end {
                    true => State::Up {
                        rate: best,
                        rounds: rounds + 1,
                    },
                    false => State::Cruise,
                }
            }
            State::Cruise if self.is_up_due && now > self.rates_from && !round.is_app_limited => {
                self.is_up_due = false;
                State::Up {
                    rate: best,
                    rounds: 0,
                }
            }
            other => other,
        };
    }

    fn is_starting(&self) -> bool {
        matches!(self.state, State::Startup { .. })
    }

    fn base_rtt(&self) -> Duration {
        self.min_rtt.unwrap_or_default()
    }

    fn allowance(&self) -> Duration {
        let rate = self.max_rate.get();
        if rate <= 0.0 {
            return ALLOWANCE;
        }
        let extra = (self.aggregation.extra() / rate).min(MAX_ALLOWANCE.as_secs_f64());

        Duration::from_secs_f64(extra).max(ALLOWANCE)
    }

    /// The model's target for the bytes in flight.
    fn target(&self, gain: f64, allowance: Duration) -> u64 {
        let time = self.base_rtt().mul_f64(gain) + allowance;

        (self.max_rate.get() * time.as_secs_f64()) as u64 + self.min_window()
    }

    fn set_window(&mut self, acked: u64, app_limited: bool) {
        let cruise = self.target(WINDOW_GAIN, self.allowance());
        match self.state {
            State::Startup { .. } => {
                if !app_limited {
                    let limit = self
                        .target(STARTUP_GAIN, self.allowance())
                        .max(self.initial_window());
                    self.window = (self.window + acked).min(limit.max(self.window));
                }
            }
            // A sample that is too high must not double the window more than once a round.
            State::Cruise => self.window = cruise.min(self.window + acked),
            State::Up { .. } => {
                let more = self.target(PROBE_UP_GAIN, Duration::ZERO).max(cruise);
                self.window = more.min(self.window + acked).max(self.window);
            }
            State::Drain { .. } | State::ProbeRtt { .. } => {}
        }
    }

    fn lower_bound(&mut self, now: Instant) {
        self.answered = now;
        self.round.lost = 0;
        let bound = (self.window() as f64 * LOSS_GAIN) as u64;
        self.bound = Some((bound.max(self.min_window()), now));
        self.bound_step = 1;
    }

    fn raise_bound(&mut self, now: Instant) {
        let Some((bound, since)) = self.bound else {
            return;
        };
        if bound > 2 * self.window {
            self.bound = None;
        } else if now >= since + RAISE_BOUND_AFTER && bound <= self.window {
            self.bound = Some((bound + self.bound_step * self.mtu, since));
            self.bound_step *= 2;
        }
    }
}

//! Finds out whether datagrams arrive that are sent by UDP in batches.
//!
//! Some kernels and paths lose or mangle datagrams that were handed over together, and nothing
//! reports it. So probes test a path when it comes into use, and at intervals while it carries
//! data: each round sends a batch each way and a single probe. A direction is used without batches
//! if single probes arrive and almost none of those that follow another in a batch do. Loss that
//! hits both alike proves nothing, and an idle path is not tested.

use std::time::{Duration, Instant};

/// Probes in a batch.
pub const PARTS: usize = 4;
/// Counters that a round takes: a batch, one that is answered by a batch, and one alone.
pub const COUNTERS: u64 = PARTS as u64 + 2;
/// Rounds before a direction is blamed; a single one in which everything arrives acquits both.
const ROUNDS: u32 = 6;
/// Rounds whose lone probe must have been answered for a verdict.
const MIN_LONE_ANSWERS: u32 = 4;
/// A direction is blamed if it delivers less than this part of what lone probes deliver.
const BLAMED_BELOW: f64 = 0.25;
/// Least time for the answers of a round.
const ROUND_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two checks of a path that carries data.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The same if the lone probes were lost too.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The directions in which batches are lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchLoss {
    /// Batches to the manager.
    pub up: bool,
    /// Batches to the client.
    pub down: bool,
}

impl BatchLoss {
    /// Why batching is off, as a phrase; empty if it is on.
    pub fn reason(self) -> &'static str {
        match (self.up, self.down) {
            (false, false) => "",
            (true, false) => "off to the cluster: packets sent together do not arrive",
            (false, true) => "off from the cluster: packets sent together do not arrive",
            (true, true) => "off: packets sent together do not arrive",
        }
    }
}

/// Checks one UDP path, from the client. The caller calls [`BatchCheck::tick`] when
/// [`BatchCheck::next_tick`] is reached, and sends the probes.
#[derive(Debug)]
pub struct BatchCheck {
    lost: BatchLoss,
    round: Option<Round>,
    next: Instant,
    rounds: u32,
    /// Arrivals in the rounds so far.
    alone: u32,
    up: u32,
    down: u32,
}

/// Arrivals of the current round.
#[derive(Debug)]
struct Round {
    first: u64,
    ends: Instant,
    alone: bool,
    up: [bool; PARTS],
    down: [bool; PARTS],
}

impl BatchCheck {
    /// A path that is taken into use, of which nothing is known: its first round is due.
    pub fn new(now: Instant) -> Self {
        Self {
            lost: BatchLoss::default(),
            round: None,
            next: now,
            rounds: 0,
            alone: 0,
            up: 0,
            down: 0,
        }
    }

    /// The verdict of the last check; nothing is lost before the first.
    pub fn lost(&self) -> BatchLoss {
        self.lost
    }

    /// When [`BatchCheck::tick`] is due.
    pub fn next_tick(&self) -> Instant {
        self.round.as_ref().map_or(self.next, |round| round.ends)
    }

    /// Returns whether a round begins now; the caller then calls [`BatchCheck::begin`].
    pub fn tick(&mut self, now: Instant, is_busy: bool) -> bool {
        if self.round.as_ref().is_some_and(|round| now >= round.ends) {
            self.end(now);
        }
        if self.round.is_some() || now < self.next {
            return false;
        }
        if self.rounds == 0 && !is_busy {
            // The answer does not matter, and probes would wake a radio.
            self.next = now + CHECK_INTERVAL;
            return false;
        }

        true
    }

    /// A round was sent: its [`COUNTERS`] probes have the counters from `first` on. `rtt` is the
    /// path's round-trip time.
    pub fn begin(&mut self, now: Instant, first: u64, rtt: Duration) {
        self.round = Some(Round {
            first,
            ends: now + ROUND_TIMEOUT.max(rtt * 3),
            alone: false,
            up: [false; PARTS],
            down: [false; PARTS],
        });
    }

    /// A genuine reply to the probe with this counter; `part` is its index in a batch of replies.
    pub fn on_reply(&mut self, now: Instant, counter: u64, part: u8) {
        let Some(round) = &mut self.round else {
            return;
        };
        let Some(index) = counter
            .checked_sub(round.first)
            .and_then(|index| usize::try_from(index).ok())
        else {
            return;
        };
        match index {
            ..PARTS => round.up[index] = true,
            PARTS => {
                if let Some(seen) = round.down.get_mut(usize::from(part)) {
                    *seen = true;
                }
            }
            _ if counter == round.first + COUNTERS - 1 => round.alone = true,
            _ => {}
        }
        if round.is_complete() {
            self.lost = BatchLoss::default();
            self.forget(now + CHECK_INTERVAL);
        }
    }

    /// Ends a round: missing answers are lost.
    fn end(&mut self, now: Instant) {
        let Some(round) = self.round.take() else {
            return;
        };
        self.rounds += 1;
        self.alone += u32::from(round.alone);
        self.up += behind_another(round.up);
        self.down += behind_another(round.down);
        if self.rounds < ROUNDS {
            self.next = now;
        } else if self.alone < MIN_LONE_ANSWERS {
            self.forget(now + RETRY_INTERVAL);
        } else {
            self.lost = BatchLoss {
                up: self.is_blamed(self.up),
                down: self.is_blamed(self.down),
            };
            self.forget(now + CHECK_INTERVAL);
        }
    }

    fn is_blamed(&self, arrived: u32) -> bool {
        let sent = self.rounds * (PARTS as u32 - 1);
        let together = f64::from(arrived) / f64::from(sent);
        let alone = f64::from(self.alone) / f64::from(self.rounds);

        together < alone * BLAMED_BELOW
    }

    fn forget(&mut self, next: Instant) {
        *self = Self {
            lost: self.lost,
            ..Self::new(next)
        };
    }
}

impl Round {
    fn is_complete(&self) -> bool {
        let parts = self.up.iter().chain(&self.down);

        self.alone && parts.into_iter().all(|arrived| *arrived)
    }
}

/// Counts the arrivals except the first, which may pass where batches are lost.
fn behind_another(parts: [bool; PARTS]) -> u32 {
    parts
        .iter()
        .skip(1)
        .map(|arrived| u32::from(*arrived))
        .sum()
}

#[cfg(test)]
#[path = "batching/tests.rs"]
mod tests;

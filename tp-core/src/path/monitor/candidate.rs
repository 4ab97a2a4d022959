//! One UDP address: the answers that prove it, the probes that are out.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Action, PROBE_INTERVAL, Target};
use crate::path::{BASE_SIZE, FULL_SIZE};

/// Answers in a row before an address is used, at first and after it has fallen silent.
const MIN_ANSWERS: u32 = 2;
const MIN_ANSWERS_REUSED: u32 = 8;
/// More answers for an address that does not carry full-size packets.
const EXTRA_SMALL_ANSWERS: u32 = 3;
const MAX_OUTSTANDING: usize = 32;

/// A UDP address to try, and the results of its probes.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    pub(super) outstanding: VecDeque<Outstanding>,
    full_answers: u32,
    small_answers: u32,
    pub(super) rtt: Option<Duration>,
    pub(super) next_probe: Instant,
    pub(super) pause: Duration,
    pub(super) falls: u32,
    pub(super) held_until: Instant,
    pub(super) used_since: Instant,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    counter: u64,
    pub(super) sent: Instant,
    is_full: bool,
}

impl Candidate {
    pub(super) fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            outstanding: VecDeque::new(),
            full_answers: 0,
            small_answers: 0,
            rtt: None,
            next_probe: now,
            pause: PROBE_INTERVAL,
            falls: 0,
            held_until: now,
            used_since: now,
        }
    }

    pub(super) fn on_reply(&mut self, now: Instant, counter: u64) {
        let Some(answered) = self.outstanding.iter().find(|sent| sent.counter == counter) else {
            return;
        };
        let sample = now.saturating_duration_since(answered.sent);
        match answered.is_full {
            true => self.full_answers += 1,
            false => self.small_answers += 1,
        }
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.pause = PROBE_INTERVAL;
        // Whatever was sent before is either answered or lost: the path works.
        self.outstanding.retain(|sent| sent.counter > counter);
    }

    /// Returns whether enough probes in a row were answered; the count restarts after a silence.
    pub(super) fn is_proven(&self) -> bool {
        let needed = match self.falls {
            0 => MIN_ANSWERS,
            _ => MIN_ANSWERS_REUSED,
        };

        self.full_answers >= needed || self.small_answers >= needed + EXTRA_SMALL_ANSWERS
    }

    pub(super) fn answers(&self) -> bool {
        self.full_answers + self.small_answers > 0
    }

    pub(super) fn forget_answers(&mut self) {
        self.full_answers = 0;
        self.small_answers = 0;
    }

    /// The longest time that an answer may take.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.rtt
            .map_or(PROBE_INTERVAL, |rtt| (rtt * 2).max(PROBE_INTERVAL))
    }

    /// Probes that should have been answered by now.
    pub(super) fn overdue(&self, now: Instant) -> usize {
        let answer_timeout = self.answer_timeout();

        self.outstanding
            .iter()
            .filter(|sent| now.saturating_duration_since(sent.sent) >= answer_timeout)
            .count()
    }

    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        self.outstanding.front().map_or(Duration::ZERO, |oldest| {
            now.saturating_duration_since(oldest.sent)
        })
    }

    pub(super) fn size(&self) -> usize {
        match self.full_answers {
            0 => BASE_SIZE.into(),
            _ => FULL_SIZE.into(),
        }
    }

    pub(super) fn probe(&mut self, now: Instant, counter: u64, size: usize) -> Action {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            // The second oldest: the oldest marks the start of the silence.
            self.outstanding.remove(1);
        }
        self.outstanding.push_back(Outstanding {
            counter,
            sent: now,
            is_full: size == usize::from(FULL_SIZE),
        });

        Action::Probe {
            to: Target::Udp(self.address),
            counter,
            size,
        }
    }
}

//! Whether several datagrams of a connection are handed to the kernel at once.
//!
//! Some kernels and paths lose or mangle, without a word, what is sent so. Nothing reports it, so
//! it is tried: heavy loss on a path turns batching off; if much less is lost then and as much
//! arrives, or less is lost and much more arrives, batching is to blame and stays off, otherwise it
//! is turned on again. Loss alone would blame it wherever it makes the sender faster than the path.
//! Both verdicts may rest on a coincidence, so the question is put again, after a pause that
//! doubles.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quinn::Connection;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::congestion::PathEpoch;

/// Datagrams that a judgement needs.
const ENOUGH: u64 = 64;
/// Least time that a judgement looks back on, in time and in round trips: a loss shows late.
const LOOK_BACK: Duration = Duration::from_millis(250);
const LOOK_BACK_TRIPS: u32 = 2;
/// Share of packets whose loss is heavy, and for how many judgements in a row.
const HEAVY: f64 = 0.1;
const HEAVY_TIMES: u32 = 2;
/// What may be left of the loss if batching is to blame, and if much more arrives besides.
const REST: f64 = 1.0 / 3.0;
const REST_WITH_MORE: f64 = 2.0 / 3.0;
/// What must arrive without batches, of what arrived with them, and what is much more.
const ARRIVES: f64 = 0.8;
const MUCH: f64 = 4.0;
/// What is in flight without any acknowledgement for so long is lost, all of it.
const UNANSWERED: Duration = Duration::from_secs(1);
const UNANSWERED_TRIPS: u32 = 4;
/// Losses of what was sent in batches still show until so much was sent in the trial, and for so
/// long after.
const SETTLE_SENT: u64 = 16;
const SETTLE: Duration = Duration::from_millis(200);
const SETTLE_TRIPS: u32 = 3;
/// How often a trial is looked at that loses little and in which little arrives.
const TRIES: u32 = 8;
/// Until the question is put again where batching was not to blame, and where it was.
const PAUSE_ON: Duration = Duration::from_secs(30);
const PAUSE_OFF: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(4 * 3600);
/// How often the counters are looked at while they move.
const PACE: Duration = Duration::from_millis(50);

/// Whether one connection batches, and how much.
#[derive(Debug)]
pub(crate) struct Batching {
    is_on: AtomicBool,
    /// Datagrams sent in batches.
    batched: AtomicU64,
    moved: Notify,
    state: Mutex<String>,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            is_on: AtomicBool::new(true),
            batched: AtomicU64::new(0),
            moved: Notify::new(),
            state: Mutex::default(),
        }
    }
}

impl Batching {
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Why batching is off, for `tp status`; empty if it is on.
    pub(crate) fn state(&self) -> String {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// So many datagrams were sent by UDP, in one batch if batching is on.
    pub(crate) fn note(&self, datagrams: usize) {
        let datagrams = datagrams as u64;
        if datagrams > 1 && self.is_on() {
            self.batched.fetch_add(datagrams, Ordering::Relaxed);
        }
        if datagrams > 1 || !self.is_on() {
            self.moved.notify_one();
        }
    }

    fn set(&self, is_on: bool, state: String) {
        self.is_on.store(is_on, Ordering::Relaxed);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Judges the path to `remote`, which is `None` on the byte stream, until dropped. `changed` is
/// called after every change.
pub(crate) async fn follow(
    connection: &Connection,
    batching: &Batching,
    epoch: &PathEpoch,
    remote: impl Fn() -> Option<SocketAddr>,
    changed: impl Fn(),
) {
    let mut judged = (None, Judge::default());
    loop {
        match judged.1.is_pending() {
            // Time alone may decide.
            true => drop(timeout(PACE * 2, batching.moved.notified()).await),
            false => batching.moved.notified().await,
        }
        sleep(PACE).await;
        let remote = remote();
        if remote.is_some() && remote != judged.0 {
            judged = (remote, Judge::default());
            batching.set(true, String::new());
        }
        let judge = &mut judged.1;
        let has_changed = match remote {
            Some(_) => judge.look(Instant::now(), Counts::of(connection, batching, epoch)),
            None => judge.interrupt(),
        };
        if has_changed {
            let state = judge.state();
            tracing::info!(?remote, state, "Batching on the UDP path changes");
            batching.set(judge.is_on(), state);
            changed();
        }
    }
}

/// Totals of one connection.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    sent: u64,
    lost: u64,
    acknowledgements: u64,
    batched: u64,
    /// Bytes.
    in_flight: u64,
    rtt: Duration,
}

impl Counts {
    fn of(connection: &Connection, batching: &Batching, epoch: &PathEpoch) -> Self {
        let stats = connection.stats();

        Self {
            sent: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            acknowledgements: stats.frame_rx.acks,
            batched: batching.batched.load(Ordering::Relaxed),
            in_flight: epoch.in_flight(),
            rtt: stats.path.rtt,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    On,
    /// Off, to see what becomes of the loss.
    Trial(Yield),
    Off {
        with: Yield,
        without: Yield,
    },
}

/// What became of what was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Yield {
    /// Share of packets that were lost.
    lost: f64,
    /// Packets per second that arrived.
    arrived: f64,
}

impl Yield {
    const NOTHING: Self = Self {
        lost: 1.0,
        arrived: 0.0,
    };

    fn between(from: Counts, to: Counts, time: Duration) -> Self {
        let (sent, lost) = (to.sent - from.sent, to.lost - from.lost);

        Self {
            // Some of what is lost was sent before.
            lost: (lost as f64 / sent.max(1) as f64).min(1.0),
            arrived: sent.saturating_sub(lost) as f64 / time.as_secs_f64(),
        }
    }
}

/// The judgement of one path. Pure: time and counts are arguments.
#[derive(Debug)]
struct Judge {
    state: State,
    /// When and from which counts on the present judgement looks.
    from: Option<(Instant, Counts)>,
    /// How many acknowledgements had come, and since when what is in flight waits for another.
    acknowledgements: u64,
    waiting: Option<Instant>,
    /// When losses begin to tell of what was sent in the trial.
    settled: Option<Instant>,
    tries: u32,
    heavy: u32,
    pause_on: Duration,
    pause_off: Duration,
    not_before: Option<Instant>,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            state: State::On,
            from: None,
            acknowledgements: 0,
            waiting: None,
            settled: None,
            tries: 0,
            heavy: 0,
            pause_on: PAUSE_ON,
            pause_off: PAUSE_OFF,
            not_before: None,
        }
    }
}

impl Judge {
    fn is_on(&self) -> bool {
        self.state == State::On
    }

    fn state(&self) -> String {
        let percent = |share: f64| share * 100.0;
        match self.state {
            State::On => String::new(),
            State::Trial(with) => {
                let lost = percent(with.lost);
                format!("off for a trial: {lost:.0} % of packets are lost")
            }
            State::Off { with, without } => format!(
                "off: {:.0} % of packets were lost with it, {:.0} % without",
                percent(with.lost),
                percent(without.lost)
            ),
        }
    }

    /// Whether time alone may change the judgement.
    fn is_pending(&self) -> bool {
        match self.state {
            State::On => self.waiting.is_some(),
            State::Trial(_) | State::Off { .. } => false,
        }
    }

    /// Nothing goes by UDP: what comes later is not compared with what was before. Returns whether
    /// the state has changed.
    fn interrupt(&mut self) -> bool {
        let is_trial = matches!(self.state, State::Trial(_));
        self.turn(match is_trial {
            true => State::On,
            false => self.state,
        });

        is_trial
    }

    /// Returns whether the state has changed.
    fn look(&mut self, now: Instant, counts: Counts) -> bool {
        let before = self.state;
        self.note_acknowledgements(now, counts);
        let (began, from) = *self.from.get_or_insert((now, counts));
        match self.state {
            State::On if self.not_before.is_none_or(|due| now >= due) => {
                self.look_for_loss(now, counts, began, from);
            }
            State::On => self.from = None,
            State::Trial(with) => self.look_at_trial(now, counts, (began, from), with),
            State::Off { .. } if self.not_before.is_some_and(|due| now >= due) => {
                self.turn(State::On);
            }
            State::Off { .. } => {}
        }

        self.state != before
    }

    fn note_acknowledgements(&mut self, now: Instant, counts: Counts) {
        let is_new = counts.acknowledgements != self.acknowledgements;
        self.acknowledgements = counts.acknowledgements;
        if is_new || counts.in_flight == 0 {
            self.waiting = None;
        }
        if counts.in_flight > 0 {
            self.waiting.get_or_insert(now);
        }
    }

    fn look_for_loss(&mut self, now: Instant, counts: Counts, began: Instant, from: Counts) {
        let patience = UNANSWERED.max(counts.rtt * UNANSWERED_TRIPS);
        if self.waiting.is_some_and(|since| now - since >= patience) {
            self.turn(State::Trial(Yield::NOTHING));
            return;
        }
        if counts.batched - from.batched < ENOUGH || now - began < look_back(counts) {
            return;
        }
        let with = Yield::between(from, counts, now - began);
        self.from = Some((now, counts));
        self.heavy = match with.lost > HEAVY {
            true => self.heavy + 1,
            false => 0,
        };
        if self.heavy >= HEAVY_TIMES {
            self.turn(State::Trial(with));
        }
    }

    fn look_at_trial(
        &mut self,
        now: Instant,
        counts: Counts,
        (began, from): (Instant, Counts),
        with: Yield,
    ) {
        let Some(settled) = self.settled else {
            if counts.sent - from.sent >= SETTLE_SENT {
                self.settled = Some(now + SETTLE.max(counts.rtt * SETTLE_TRIPS));
            }
            return;
        };
        if now < settled || began < settled {
            self.from = Some((now, counts));
            return;
        }
        if counts.sent - from.sent < ENOUGH || now - began < look_back(counts) {
            return;
        }
        let without = Yield::between(from, counts, now - began);
        let (lost, arrived) = (with.lost * REST, with.arrived * ARRIVES);
        let is_much_better = without.lost < lost && without.arrived >= arrived;
        let is_faster =
            without.lost < with.lost * REST_WITH_MORE && without.arrived > with.arrived * MUCH;
        if is_much_better || is_faster {
            self.not_before = Some(now + self.pause_off);
            self.pause_off = (self.pause_off * 2).min(LONGEST_PAUSE);
            self.turn(State::Off { with, without });
        } else if without.lost < lost && self.tries < TRIES {
            // The sender may be slow yet after all its losses.
            self.tries += 1;
            self.from = Some((now, counts));
        } else {
            self.acquit(now);
        }
    }

    /// Batching is not to blame, as far as one can tell.
    fn acquit(&mut self, now: Instant) {
        self.not_before = Some(now + self.pause_on);
        self.pause_on = (self.pause_on * 2).min(LONGEST_PAUSE);
        self.turn(State::On);
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.from = None;
        self.waiting = None;
        self.settled = None;
        self.tries = 0;
        self.heavy = 0;
    }
}

fn look_back(counts: Counts) -> Duration {
    LOOK_BACK.max(counts.rtt * LOOK_BACK_TRIPS)
}

#[cfg(test)]
#[path = "batching/tests.rs"]
mod tests;

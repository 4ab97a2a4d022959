//! Connection attempts that wait for the far side.
//!
//! The application's kernel repeats a SYN until it is answered. Each attempt is dialled once; after
//! the dial has succeeded, every further copy is written back, because the kernel may have dropped
//! the one before.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    packet::{self, FlowKey, Syn},
    verdict::{Signal, Verdict},
};

/// An attempt whose next SYN is overdue by this much was given up by the application. The kernel's
/// pauses start at 1 s at most, and at most double.
const ABANDONED_AFTER: Duration = Duration::from_secs(5);
/// Between two searches for such attempts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The pauses before an ICMP refusal is repeated. Linux drops one that arrives while `connect()`
/// still owns the socket, and takes the next.
const REPEAT_DELAYS: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
];

/// Identifies one attempt: a port that is used again has another sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The application's end and the alias that it connects to.
    pub flow: FlowKey,
    /// The sequence number of its SYN.
    pub sequence: u32,
}

/// An action for the caller. Packets are whole IPv4 packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial the destination, then call [`HeldSyns::handle_verdict`].
    Dial(Attempt),
    /// Write this packet to the TUN.
    Write(Vec<u8>),
    /// The same with one that was written before, and may reach no socket.
    WriteAgain(Vec<u8>),
    /// Abort this dial: the application no longer waits for it.
    Cancel(Attempt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialling,
    Approved,
    /// Accepted or answered. Kept because copies of the SYN may still be queued, and must not be
    /// dialled.
    Over(Signal),
}

impl State {
    fn is_waiting(self) -> bool {
        matches!(self, Self::Dialling | Self::Approved)
    }
}

#[derive(Debug)]
struct Held {
    syn: Syn,
    state: State,
    seen: Instant,
    gap: Duration,
}

impl Held {
    fn deadline(&self) -> Instant {
        self.seen + self.gap * 2 + ABANDONED_AFTER
    }
}

/// All attempts of a session; at most `capacity` wait. Beyond it new ones are refused at once, as
/// a machine without room for another connection does.
#[derive(Debug)]
pub struct HeldSyns {
    held: HashMap<FlowKey, Held>,
    /// Attempts that are over, oldest first; no more than `capacity`.
    over: VecDeque<Attempt>,
    waiting: usize,
    dialling: usize,
    capacity: usize,
    sweep: Option<Instant>,
    /// Refusals to repeat, by the number of repeats so far; the oldest first, no more than
    /// `capacity` each.
    repeats: [VecDeque<(Instant, Attempt)>; REPEAT_DELAYS.len()],
}

impl HeldSyns {
    /// No attempts yet, and at most `capacity` that wait.
    pub fn new(capacity: usize) -> Self {
        Self {
            held: HashMap::new(),
            over: VecDeque::new(),
            waiting: 0,
            dialling: 0,
            capacity,
            sweep: None,
            repeats: Default::default(),
        }
    }

    /// Attempts that wait for their verdict.
    pub fn dialling(&self) -> usize {
        self.dialling
    }

    /// A SYN was read from the TUN at `now`. The actions are to be performed in their order.
    pub fn handle_syn(&mut self, syn: Syn, now: Instant) -> Vec<Action> {
        let attempt = Attempt {
            flow: syn.flow,
            sequence: syn.sequence,
        };
        let mut actions = Vec::new();
        if let Some(held) = self.held.get_mut(&syn.flow) {
            if held.syn.sequence == syn.sequence {
                held.gap = now.saturating_duration_since(held.seen);
                held.seen = now;
                match held.state {
                    State::Approved => actions.push(Action::Write(held.syn.packet.to_vec())),
                    State::Dialling | State::Over(Signal::Accept) => {}
                    State::Over(refusal) => actions.extend(signal(&held.syn, refusal)),
                }
                return actions;
            }
            actions.extend(self.cancel(attempt.flow));
        }
        if self.waiting >= self.capacity {
            actions.extend(signal(&syn, Verdict::Exhausted.signal()));
            return actions;
        }
        let held = Held {
            syn,
            state: State::Dialling,
            seen: now,
            gap: Duration::ZERO,
        };
        self.held.insert(attempt.flow, held);
        self.waiting += 1;
        self.dialling += 1;
        self.sweep.get_or_insert(now + SWEEP_INTERVAL);
        actions.push(Action::Dial(attempt));

        actions
    }

    /// The dial of `attempt` has ended at `now`. `None` if the attempt is over, or if nothing is
    /// written for this verdict.
    pub fn handle_verdict(
        &mut self,
        attempt: Attempt,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Action> {
        let held = self.held.get_mut(&attempt.flow)?;
        if held.syn.sequence != attempt.sequence || held.state != State::Dialling {
            return None;
        }
        let answer = signal(&held.syn, verdict.signal());
        self.dialling -= 1;
        if verdict.signal() == Signal::Accept {
            held.state = State::Approved;
        } else {
            held.state = State::Over(verdict.signal());
            self.remember(attempt);
            if matches!(verdict.signal(), Signal::Unreachable(_)) {
                self.repeat(attempt, 0, now);
            }
        }

        answer
    }

    /// The listener has accepted the connection `flow`. `None` if no dial for it has succeeded: it is
    /// to be reset.
    pub fn handle_accepted(&mut self, flow: FlowKey) -> Option<Attempt> {
        let held = self.held.get_mut(&flow)?;
        if held.state != State::Approved {
            return None;
        }
        held.state = State::Over(Signal::Accept);
        let attempt = Attempt {
            flow,
            sequence: held.syn.sequence,
        };
        self.remember(attempt);

        Some(attempt)
    }

    /// Repeats refusals, and forgets attempts that the application has given up. It is to be
    /// called at the time that [`HeldSyns::poll_timeout`] gives; an earlier call does no harm.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.due_repeats(now);
        if self.sweep.is_none_or(|due| now < due) {
            return actions;
        }
        let due: Vec<FlowKey> = self
            .held
            .iter()
            .filter(|(_, held)| held.deadline() <= now)
            .map(|(flow, _)| *flow)
            .collect();
        actions.extend(due.into_iter().filter_map(|flow| self.cancel(flow)));
        self.sweep = (!self.held.is_empty()).then(|| now + SWEEP_INTERVAL);

        actions
    }

    /// The session ends: forgets everything. Returns the RSTs for the attempts that wait.
    pub fn reset_all(&mut self) -> Vec<Vec<u8>> {
        self.over.clear();
        self.repeats = Default::default();
        self.waiting = 0;
        self.dialling = 0;
        self.sweep = None;
        self.held
            .drain()
            .filter(|(_, held)| held.state.is_waiting())
            .map(|(_, held)| packet::reset(&held.syn))
            .collect()
    }

    /// When [`HeldSyns::handle_timeout`] is due; `None` if nothing waits for a time.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let repeats = self
            .repeats
            .iter()
            .filter_map(|queue| Some(queue.front()?.0));

        repeats.chain(self.sweep).min()
    }

    /// Each queue is ordered by time, because all of its entries wait equally long.
    fn repeat(&mut self, attempt: Attempt, round: usize, now: Instant) {
        let (Some(pause), Some(queue)) = (REPEAT_DELAYS.get(round), self.repeats.get_mut(round))
        else {
            return;
        };
        // An attempt that is left out gets its refusal with the next copy of the SYN.
        if queue.len() < self.capacity {
            queue.push_back((now + *pause, attempt));
        }
    }

    fn due_repeats(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for round in 0..REPEAT_DELAYS.len() {
            while let Some((_, attempt)) = self.repeats[round].pop_front_if(|next| next.0 <= now) {
                let refused = self.held.get(&attempt.flow);
                let Some(Held {
                    syn,
                    state: State::Over(Signal::Unreachable(code)),
                    ..
                }) = refused.filter(|held| held.syn.sequence == attempt.sequence)
                else {
                    continue;
                };
                actions.push(Action::WriteAgain(packet::unreachable(syn, *code)));
                self.repeat(attempt, round + 1, now);
            }
        }

        actions
    }

    /// `attempt` no longer waits, but its copies may still come.
    fn remember(&mut self, attempt: Attempt) {
        self.waiting -= 1;
        self.over.push_back(attempt);
        if self.over.len() <= self.capacity {
            return;
        }
        if let Some(oldest) = self.over.pop_front()
            && self.held.get(&oldest.flow).is_some_and(|held| {
                held.syn.sequence == oldest.sequence && !held.state.is_waiting()
            })
        {
            self.held.remove(&oldest.flow);
        }
    }

    /// Forgets an attempt; returns the action that stops its dial, if it still waits.
    fn cancel(&mut self, flow: FlowKey) -> Option<Action> {
        let held = self.held.remove(&flow)?;
        if !held.state.is_waiting() {
            return None;
        }
        self.waiting -= 1;
        if held.state == State::Dialling {
            self.dialling -= 1;
        }

        Some(Action::Cancel(Attempt {
            flow,
            sequence: held.syn.sequence,
        }))
    }
}

fn signal(syn: &Syn, signal: Signal) -> Option<Action> {
    match signal {
        Signal::Accept => Some(Action::Write(syn.packet.to_vec())),
        Signal::Reset => Some(Action::Write(packet::reset(syn))),
        Signal::Unreachable(code) => Some(Action::Write(packet::unreachable(syn, code))),
        Signal::Silence => None,
    }
}

#[cfg(test)]
mod tests;

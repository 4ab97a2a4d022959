//! Connection attempts that wait for the far side.
//!
//! The application's kernel sends a SYN again until somebody answers. Whatever comes, one attempt
//! is dialled once; once the dial has succeeded every further copy is written back, because the
//! kernel may have lost the one before.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    packet::{self, FlowKey, Syn},
    verdict::{Signal, Verdict},
};

/// An attempt whose next SYN is overdue by this much has been given up by the application. The
/// kernel's pauses grow from 1 s at most by doubling.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the attempts are looked through for those.
const SWEEP: Duration = Duration::from_secs(1);

/// When an ICMP refusal is written again. Linux drops one that meets the socket while `connect()` is
/// still at work with it, and hears the next.
const AGAIN: [Duration; 3] = [
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

/// What is to be done. Packets are whole IPv4 packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial the destination, then call [`HeldSyns::handle_verdict`].
    Dial(Attempt),
    /// Write this packet to the TUN.
    Write(Vec<u8>),
    /// The same with one that was written before, and that may meet nobody any more.
    WriteAgain(Vec<u8>),
    /// Nobody waits for this dial any more.
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
        self.seen + self.gap * 2 + PATIENCE
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
    /// Refusals that are due again, by how often they were; the oldest first, no more than
    /// `capacity` each.
    again: [VecDeque<(Instant, Attempt)>; AGAIN.len()],
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
            again: Default::default(),
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
        self.sweep.get_or_insert(now + SWEEP);
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
        let mut actions = self.due_again(now);
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
        self.sweep = (!self.held.is_empty()).then(|| now + SWEEP);

        actions
    }

    /// The session ends: forgets everything. Returns the packets that reset what waits.
    pub fn reset_all(&mut self) -> Vec<Vec<u8>> {
        self.over.clear();
        self.again = Default::default();
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
        let again = self.again.iter().filter_map(|queue| Some(queue.front()?.0));

        again.chain(self.sweep).min()
    }

    /// Each queue is in the order of time, because all in it wait for as long.
    fn repeat(&mut self, attempt: Attempt, round: usize, now: Instant) {
        let (Some(pause), Some(queue)) = (AGAIN.get(round), self.again.get_mut(round)) else {
            return;
        };
        // Whoever is left out hears it with the next copy of the SYN.
        if queue.len() < self.capacity {
            queue.push_back((now + *pause, attempt));
        }
    }

    fn due_again(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for round in 0..AGAIN.len() {
            while let Some((_, attempt)) = self.again[round].pop_front_if(|next| next.0 <= now) {
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

    /// Forgets an attempt; the action if somebody works for it.
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

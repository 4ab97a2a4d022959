//! Connection attempts that wait for the far side.
//!
//! The application's kernel sends a SYN again until somebody answers. Whatever comes, one attempt
//! is dialled once; once the dial has succeeded every further copy is written back, because the
//! kernel may have lost the one before.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{
    net::{Signal, Verdict},
    packet::{self, FlowKey, Syn},
};

/// An attempt whose next SYN is overdue by this much has been given up by the application. The
/// kernel's pauses grow from 1 s at most by doubling.
const PATIENCE: Duration = Duration::from_secs(5);

/// Identifies one attempt: a port that is used again has another sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub flow: FlowKey,
    pub sequence: u32,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial the destination, then call [`HeldSyns::handle_verdict`].
    Dial(Attempt),
    /// Write this packet to the TUN.
    Write(Vec<u8>),
    /// Nobody waits for this dial any more.
    Cancel(Attempt),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialling,
    Approved,
    /// The far side stayed silent, and so do we.
    Silent,
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

/// All attempts of a session; at most `capacity`. Beyond it new ones are refused at once, as a
/// machine without room for another connection does.
#[derive(Debug)]
pub struct HeldSyns {
    held: HashMap<FlowKey, Held>,
    capacity: usize,
}

impl HeldSyns {
    pub fn new(capacity: usize) -> Self {
        Self {
            held: HashMap::new(),
            capacity,
        }
    }

    /// Attempts that wait for their verdict.
    pub fn dialling(&self) -> usize {
        self.held
            .values()
            .filter(|held| held.state == State::Dialling)
            .count()
    }

    /// A SYN was read from the TUN.
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
                if held.state == State::Approved {
                    actions.push(Action::Write(held.syn.packet.to_vec()));
                }
                return actions;
            }
            let older = Attempt {
                flow: syn.flow,
                sequence: held.syn.sequence,
            };
            actions.push(Action::Cancel(older));
            self.held.remove(&syn.flow);
        }
        if self.held.len() >= self.capacity {
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
        actions.push(Action::Dial(attempt));

        actions
    }

    /// The dial of `attempt` has ended. Nothing happens if the attempt is over.
    pub fn handle_verdict(&mut self, attempt: Attempt, verdict: Verdict) -> Option<Action> {
        let held = self.held.get_mut(&attempt.flow)?;
        if held.syn.sequence != attempt.sequence || held.state != State::Dialling {
            return None;
        }
        match verdict.signal() {
            Signal::Accept => held.state = State::Approved,
            Signal::Silence => held.state = State::Silent,
            Signal::Reset | Signal::Unreachable(_) => {
                let held = self.held.remove(&attempt.flow)?;
                return signal(&held.syn, verdict.signal());
            }
        }

        signal(&held.syn, verdict.signal())
    }

    /// The listener has accepted this connection. `None` if nobody approved it.
    pub fn handle_accepted(&mut self, flow: FlowKey) -> Option<Attempt> {
        let held = self.held.get(&flow)?;
        if held.state != State::Approved {
            return None;
        }
        let attempt = Attempt {
            flow,
            sequence: held.syn.sequence,
        };
        self.held.remove(&flow);

        Some(attempt)
    }

    /// Forgets attempts that the application has given up.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let over: Vec<FlowKey> = self
            .held
            .iter()
            .filter(|(_, held)| held.deadline() <= now)
            .map(|(flow, _)| *flow)
            .collect();

        over.into_iter()
            .filter_map(|flow| {
                let held = self.held.remove(&flow)?;
                Some(Action::Cancel(Attempt {
                    flow,
                    sequence: held.syn.sequence,
                }))
            })
            .collect()
    }

    /// Resets everything that is held: the session ends.
    pub fn reset_all(&mut self) -> Vec<Vec<u8>> {
        self.held
            .drain()
            .map(|(_, held)| packet::reset(&held.syn))
            .collect()
    }

    /// When [`HeldSyns::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.held.values().map(Held::deadline).min()
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
mod tests {
    use super::*;

    fn syn(port: u16, sequence: u32) -> Syn {
        let source = format!("198.19.255.1:{port}").parse().unwrap();
        let packet = packet::syn_packet(source, "198.18.1.2:80".parse().unwrap(), sequence);
        packet::parse_syn(&packet).unwrap()
    }

    fn attempt(syn: &Syn) -> Attempt {
        Attempt {
            flow: syn.flow,
            sequence: syn.sequence,
        }
    }

    #[test]
    fn a_repeated_syn_never_dials_twice() {
        let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));

        assert_eq!(
            held.handle_syn(syn.clone(), now),
            [Action::Dial(attempt(&syn))]
        );
        assert_eq!(held.handle_syn(syn, now + Duration::from_secs(1)), []);
        assert_eq!(held.dialling(), 1);
    }

    #[test]
    fn an_approved_syn_is_written_back_until_it_is_accepted() {
        let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
        held.handle_syn(syn.clone(), now);
        let written = Action::Write(syn.packet.to_vec());

        assert_eq!(
            held.handle_verdict(attempt(&syn), Verdict::Connected),
            Some(written.clone())
        );
        assert_eq!(
            held.handle_syn(syn.clone(), now + Duration::from_secs(1)),
            [written]
        );
        assert_eq!(held.handle_accepted(syn.flow), Some(attempt(&syn)));
        assert_eq!(held.handle_accepted(syn.flow), None);
    }

    #[test]
    fn nobody_is_accepted_without_approval() {
        let (mut held, syn) = (HeldSyns::new(8), syn(40000, 1));
        held.handle_syn(syn.clone(), Instant::now());

        assert_eq!(held.handle_accepted(syn.flow), None);
    }

    #[test]
    fn a_refusal_is_told_once() {
        let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
        held.handle_syn(syn.clone(), now);
        let refused = held.handle_verdict(attempt(&syn), Verdict::Refused);

        assert_eq!(refused, Some(Action::Write(packet::reset(&syn))));
        assert_eq!(held.handle_verdict(attempt(&syn), Verdict::Connected), None);
    }

    #[test]
    fn a_silent_target_stays_silent() {
        let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
        held.handle_syn(syn.clone(), now);

        assert_eq!(held.handle_verdict(attempt(&syn), Verdict::TimedOut), None);
        assert_eq!(held.handle_syn(syn, now + Duration::from_secs(1)), []);
    }

    #[test]
    fn a_port_used_again_is_a_new_attempt() {
        let (mut held, now) = (HeldSyns::new(8), Instant::now());
        let (old, new) = (syn(40000, 1), syn(40000, 2));
        held.handle_syn(old.clone(), now);

        let actions = held.handle_syn(new.clone(), now);

        assert_eq!(
            actions,
            [Action::Cancel(attempt(&old)), Action::Dial(attempt(&new))]
        );
        assert_eq!(held.handle_verdict(attempt(&old), Verdict::Refused), None);
    }

    #[test]
    fn a_full_table_refuses_at_once() {
        let (mut held, now) = (HeldSyns::new(1), Instant::now());
        held.handle_syn(syn(40000, 1), now);
        let second = syn(40001, 1);

        let refusal = packet::unreachable(&second, crate::net::HOST_UNREACHABLE);
        assert_eq!(held.handle_syn(second, now), [Action::Write(refusal)]);
    }

    #[test]
    fn an_attempt_given_up_by_the_application_is_cancelled() {
        let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
        held.handle_syn(syn.clone(), now);
        let repeated = now + Duration::from_secs(8);
        held.handle_syn(syn.clone(), repeated);
        let due = held.poll_timeout().unwrap();

        assert_eq!(due, repeated + Duration::from_secs(8 * 2) + PATIENCE);
        assert_eq!(held.handle_timeout(due - Duration::from_millis(1)), []);
        assert_eq!(held.handle_timeout(due), [Action::Cancel(attempt(&syn))]);
        assert_eq!(held.poll_timeout(), None);
    }
}

//! Decides, from probes alone, which path the client uses.
//!
//! A UDP address is used once it has answered probes in a row; it is left when six probes at
//! `PROBE_INTERVAL` stay unanswered. Receiving is no proof, because one direction may be blocked
//! alone. A monitor that was itself late blames no path: replies may wait in its own queue.

mod candidate;
mod survey;

pub use self::survey::CandidateStatus;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{candidate::Candidate, survey::Survey};
use super::{BASE_SIZE, FULL_SIZE, PathChoice};

/// Between probes on a path that is in use or being tried.
const PROBE_INTERVAL: Duration = Duration::from_millis(60);
/// The same on a path that is in use but carries nothing.
const IDLE_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A path without data for so long counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(2);
/// Unanswered probes that mean silence.
const SILENT_PROBES: usize = 6;
/// Longest pause between tries of an address that does not answer.
const MAX_PROBE_BACKOFF: Duration = Duration::from_secs(30);
/// Pause before an address that fell silent is used again; doubles with every fall.
const MIN_REUSE_BACKOFF: Duration = Duration::from_secs(2);
/// An address that has served for so long without a fall has its falls forgotten.
const TRUSTED_AFTER: Duration = Duration::from_secs(300);
/// Between probes on the byte stream while it is in use, and while UDP is.
const LINK_PROBE_INTERVAL: Duration = Duration::from_secs(1);
const STANDBY_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Silence on both paths that means that the replica is gone.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// A tick that is later than this judges no path.
const LATE_AFTER: Duration = Duration::from_millis(50);
const MAX_CANDIDATES: usize = 8;

/// A path for probes and for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The stream path.
    Link,
    /// The UDP path to an address of the replica.
    Udp(SocketAddr),
}

/// An action for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a probe.
    Probe {
        /// Where to.
        to: Target,
        /// Stands in the probe and in its reply; grows from probe to probe.
        counter: u64,
        /// Bytes of UDP payload; 0 for the smallest probe.
        size: usize,
    },
    /// Move the connection to another path.
    Switch(Target),
    /// Nothing answers on any path.
    Gone,
}

/// Watches the paths of one client. The caller reads the clock, calls [`Monitor::tick`] when
/// [`Monitor::next_tick`] is reached, and carries the [`Action`]s out.
#[derive(Debug)]
pub struct Monitor {
    choice: PathChoice,
    active: Target,
    candidates: Vec<Candidate>,
    next_counter: u64,
    survey: Survey,
    link: LinkHealth,
    busy_until: Instant,
    expected_tick: Instant,
}

#[derive(Debug)]
struct LinkHealth {
    down_since: Option<Instant>,
    next_probe: Instant,
    /// Send time of the oldest probe after which nothing was received.
    awaiting_since: Option<Instant>,
}

impl Monitor {
    /// A connection on the byte stream, without any UDP address yet.
    pub fn new(choice: PathChoice, now: Instant) -> Self {
        Self {
            choice,
            active: Target::Link,
            candidates: Vec::new(),
            next_counter: 1,
            survey: Survey::default(),
            link: LinkHealth {
                down_since: None,
                next_probe: now + LINK_PROBE_INTERVAL,
                awaiting_since: None,
            },
            busy_until: now,
            expected_tick: now,
        }
    }

    /// The path in use.
    pub fn active(&self) -> Target {
        self.active
    }

    /// Replaces the addresses to try, best first; from the ninth on they are not tried. One in use
    /// stays in use while it works.
    pub fn set_candidates(&mut self, now: Instant, addresses: &[SocketAddr]) {
        if self.choice == PathChoice::StreamOnly {
            return;
        }
        let mut known = std::mem::take(&mut self.candidates);
        let wanted = addresses.iter().copied().take(MAX_CANDIDATES);
        let active = match self.active {
            Target::Udp(address) if !addresses.contains(&address) => Some(address),
            Target::Udp(_) | Target::Link => None,
        };
        for address in wanted.chain(active) {
            if self.candidates.iter().any(|other| other.address == address) {
                continue;
            }
            let position = known.iter().position(|other| other.address == address);
            self.candidates.push(match position {
                Some(position) => known.swap_remove(position),
                None => Candidate::new(address, now),
            });
        }
    }

    /// A genuine reply to the probe with this counter arrived from a UDP address. Replies on the
    /// byte stream need no call: any byte received there counts.
    pub fn on_reply(&mut self, now: Instant, from: SocketAddr, counter: u64) {
        self.survey.on_reply(now, from, counter);
        let in_use_and_idle = self.active == Target::Udp(from) && self.busy_until < now;
        if let Some(candidate) = self.candidate(from) {
            candidate.on_reply(now, counter);
            candidate.next_probe = match in_use_and_idle {
                true => now + IDLE_PROBE_INTERVAL,
                false => candidate.next_probe.min(now + PROBE_INTERVAL),
            };
        }
    }

    /// The byte stream has ended, or a new one has taken its place.
    pub fn on_link(&mut self, now: Instant, up: bool) {
        self.link.awaiting_since = None;
        self.link.next_probe = now;
        self.link.down_since = match up {
            true => None,
            false => self.link.down_since.or(Some(now)),
        };
        if !up {
            for candidate in &mut self.candidates {
                candidate.next_probe = candidate.next_probe.min(now);
                candidate.pause = PROBE_INTERVAL;
            }
        }
    }

    /// Data was sent.
    pub fn on_activity(&mut self, now: Instant) {
        let was_idle = self.busy_until < now;
        self.busy_until = now + IDLE_AFTER;
        if was_idle && let Some(candidate) = self.active_candidate() {
            candidate.next_probe = candidate.next_probe.min(now + PROBE_INTERVAL);
        }
    }

    /// When [`Monitor::tick`] is due.
    pub fn next_tick(&self, now: Instant) -> Instant {
        let udp = match self.active {
            Target::Udp(address) => self
                .candidates
                .iter()
                .find(|candidate| candidate.address == address)
                .map(|candidate| candidate.next_probe),
            Target::Link => self.candidates.iter().map(|other| other.next_probe).min(),
        };
        let link = self.link.next_probe;
        let down = self.link.down_since.map(|since| since + GONE_AFTER);

        [udp, down]
            .into_iter()
            .flatten()
            .fold(link, Instant::min)
            .max(now)
    }

    /// Sends what is due and judges the paths. `link_received` is the time of the last byte on the
    /// byte stream. All replies that have arrived must be given before.
    pub fn tick(&mut self, now: Instant, link_received: Instant) -> Vec<Action> {
        self.link
            .awaiting_since
            .take_if(|since| link_received >= *since);
        if now.saturating_duration_since(self.expected_tick) > LATE_AFTER {
            self.forgive(now);
        }
        let mut actions = Vec::new();
        match self.active {
            Target::Link => self.tick_on_link(now, &mut actions),
            Target::Udp(address) => self.tick_on_udp(now, address, &mut actions),
        }
        self.probe_link(now, &mut actions);
        self.expected_tick = self.next_tick(now);

        actions
    }

    fn tick_on_link(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let link_silent = self.link_silence(now);
        // With the stream in doubt, any address that answers is better.
        let desperate = link_silent > GONE_AFTER / 2;
        let proven = self.candidates.iter().find(|candidate| {
            (candidate.is_proven() && candidate.held_until <= now)
                || (desperate && candidate.answers())
        });
        if let Some(address) = proven.map(|candidate| candidate.address) {
            self.switch_to_udp(now, address, actions);
            return;
        }
        if link_silent >= GONE_AFTER {
            actions.push(Action::Gone);
            return;
        }
        for index in 0..self.candidates.len() {
            if self.candidates[index].next_probe <= now {
                self.try_candidate(now, index, actions);
            }
        }
    }

    /// One round for an address that is not in use: a full-size probe and a small one.
    fn try_candidate(&mut self, now: Instant, index: usize, actions: &mut Vec<Action>) {
        let candidate = &mut self.candidates[index];
        if candidate.overdue(now) > 0 {
            candidate
                .outstanding
                .retain(|sent| now - sent.sent < IDLE_PROBE_INTERVAL);
            candidate.pause = (candidate.pause * 2).min(MAX_PROBE_BACKOFF);
        }
        if candidate.pause > IDLE_PROBE_INTERVAL {
            candidate.forget_answers();
        }
        candidate.next_probe = now + candidate.pause;
        for size in [FULL_SIZE, BASE_SIZE] {
            let action = candidate.probe(now, self.next_counter, size.into());
            self.next_counter += 1;
            actions.push(action);
        }
    }

    fn switch_to_udp(&mut self, now: Instant, address: SocketAddr, actions: &mut Vec<Action>) {
        self.active = Target::Udp(address);
        self.busy_until = now + IDLE_AFTER;
        if let Some(candidate) = self.candidate(address) {
            candidate.outstanding.clear();
            candidate.next_probe = now + PROBE_INTERVAL;
            candidate.used_since = now;
        }
        self.link.next_probe = self.link.next_probe.max(now + LINK_PROBE_INTERVAL);
        actions.push(Action::Switch(self.active));
    }

    fn tick_on_udp(&mut self, now: Instant, address: SocketAddr, actions: &mut Vec<Action>) {
        let (is_busy, counter) = (now < self.busy_until, self.next_counter);
        let is_alone = self.choice == PathChoice::UdpOnly;
        let may_return = !is_alone && self.link.down_since.is_none();
        let link_silence = self.link_silence(now);
        let Some(candidate) = self.candidate(address) else {
            return;
        };
        let overdue = candidate.overdue(now);
        if overdue >= SILENT_PROBES && may_return {
            candidate.falls += 1;
            candidate.forget_answers();
            candidate.outstanding.clear();
            candidate.held_until = now + MIN_REUSE_BACKOFF * 2u32.pow(candidate.falls.min(6) - 1);
            candidate.pause = PROBE_INTERVAL;
            candidate.next_probe = now + PROBE_INTERVAL;
            self.active = Target::Link;
            self.link.next_probe = now;
            actions.push(Action::Switch(Target::Link));
            return;
        }
        let udp_silence = candidate.silent_for(now);
        if udp_silence >= GONE_AFTER && (is_alone || link_silence >= GONE_AFTER) {
            actions.push(Action::Gone);
            return;
        }
        if now.saturating_duration_since(candidate.used_since) >= TRUSTED_AFTER {
            candidate.falls = 0;
        }
        if candidate.next_probe <= now {
            let size = candidate.size();
            actions.push(candidate.probe(now, counter, size));
            // On an idle path, a reply puts the next probe off.
            candidate.next_probe = match is_busy || overdue > 0 {
                true => now + PROBE_INTERVAL,
                false => now + candidate.answer_timeout(),
            };
            self.next_counter += 1;
        }
    }

    fn probe_link(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.link.next_probe > now {
            return;
        }
        self.link.next_probe = now
            + match self.active {
                Target::Link => LINK_PROBE_INTERVAL,
                Target::Udp(_) => STANDBY_PROBE_INTERVAL,
            };
        if self.link.down_since.is_none() {
            self.link.awaiting_since = self.link.awaiting_since.or(Some(now));
            actions.push(Action::Probe {
                to: Target::Link,
                counter: self.next_counter,
                size: 0,
            });
            self.next_counter += 1;
        }
    }

    fn link_silence(&self, now: Instant) -> Duration {
        [self.link.down_since, self.link.awaiting_since]
            .into_iter()
            .flatten()
            .map(|since| now.saturating_duration_since(since))
            .max()
            .unwrap_or_default()
    }

    /// Does not count the missed time as silence; silence before and after it still counts.
    fn forgive(&mut self, now: Instant) {
        let missed = now.saturating_duration_since(self.expected_tick);
        for candidate in &mut self.candidates {
            candidate.outstanding.truncate(1);
            if let Some(oldest) = candidate.outstanding.front_mut() {
                oldest.sent += missed;
            }
            candidate.next_probe = candidate.next_probe.min(now);
        }
        self.link.next_probe = now;
        let since = [&mut self.link.awaiting_since, &mut self.link.down_since];
        since.into_iter().flatten().for_each(|it| *it += missed);
    }

    fn candidate(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.candidates
            .iter_mut()
            .find(|candidate| candidate.address == address)
    }

    fn active_candidate(&mut self) -> Option<&mut Candidate> {
        match self.active {
            Target::Udp(address) => self.candidate(address),
            Target::Link => None,
        }
    }

    /// Probes every address once; with `again`, only those that have not answered since.
    pub fn survey(&mut self, now: Instant, again: bool) -> Vec<Action> {
        if !again {
            self.survey
                .begin(self.candidates.iter().map(|candidate| candidate.address));
        }
        let asked = self.survey.unanswered().into_iter();

        asked
            .map(|address| {
                let counter = self.take_counters(1);
                self.survey.sent(now, counter, address);
                Action::Probe {
                    to: Target::Udp(address),
                    counter,
                    size: BASE_SIZE.into(),
                }
            })
            .collect()
    }

    /// The results of the last survey so far.
    pub fn found(&self) -> &[CandidateStatus] {
        self.survey.found()
    }

    /// Counters for `count` probes that are not the monitor's; returns the first.
    pub fn take_counters(&mut self, count: u64) -> u64 {
        let first = self.next_counter;
        self.next_counter += count;

        first
    }

    /// True if data was sent within the last two seconds.
    pub fn is_busy(&self, now: Instant) -> bool {
        now < self.busy_until
    }

    /// Smoothed round-trip time of probes on the UDP path in use; 0 while there is none.
    pub fn udp_rtt(&mut self) -> Duration {
        self.active_candidate()
            .and_then(|candidate| candidate.rtt)
            .unwrap_or_default()
    }

    /// Why UDP is not in use, as a phrase; empty if it is.
    pub fn reason(&self) -> String {
        if self.choice == PathChoice::StreamOnly {
            return "UDP is not to be used".into();
        }
        match (self.active, self.candidates.as_slice()) {
            (Target::Udp(_), _) => String::new(),
            (Target::Link, []) => "the cluster has given no UDP address".into(),
            (Target::Link, [candidate, rest @ ..]) => {
                let others = match rest.len() {
                    0 => String::new(),
                    count => format!(" and {count} more"),
                };
                let problem = match (candidate.falls, candidate.pause > PROBE_INTERVAL * 4) {
                    (0, false) => "waiting for an answer by UDP from",
                    (0, true) => "no answer by UDP from",
                    (_, _) => "UDP fell silent:",
                };
                format!("{problem} {}{others}", candidate.address)
            }
        }
    }
}

#[cfg(test)]
#[path = "monitor/tests.rs"]
mod tests;

//! Probes every UDP address, on request. The answers prove no path: they are a snapshot.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The result of a survey for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateStatus {
    /// The address that was asked.
    pub address: SocketAddr,
    /// Round-trip time of the fastest answer; `None` without one.
    pub rtt: Option<Duration>,
}

#[derive(Debug)]
struct Sent {
    counter: u64,
    to: SocketAddr,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Survey {
    sent: Vec<Sent>,
    found: Vec<CandidateStatus>,
}

impl Survey {
    /// Starts over: forgets earlier results.
    pub(super) fn begin(&mut self, addresses: impl Iterator<Item = SocketAddr>) {
        self.sent.clear();
        self.found = addresses
            .map(|address| CandidateStatus { address, rtt: None })
            .collect();
    }

    pub(super) fn unanswered(&self) -> Vec<SocketAddr> {
        let unanswered = self.found.iter().filter(|it| it.rtt.is_none());

        unanswered.map(|it| it.address).collect()
    }

    pub(super) fn sent(&mut self, now: Instant, counter: u64, to: SocketAddr) {
        let at = now;
        self.sent.push(Sent { counter, to, at });
    }

    pub(super) fn on_reply(&mut self, now: Instant, from: SocketAddr, counter: u64) {
        let sent = self
            .sent
            .iter()
            .find(|sent| sent.counter == counter && sent.to == from);
        let Some(rtt) = sent.map(|sent| now.saturating_duration_since(sent.at)) else {
            return;
        };
        if let Some(found) = self.found.iter_mut().find(|it| it.address == from) {
            found.rtt = Some(found.rtt.map_or(rtt, |known| known.min(rtt)));
        }
    }

    pub(super) fn found(&self) -> &[CandidateStatus] {
        &self.found
    }
}

//! Delivery rate, as draft-ietf-ccwg-bbr-06 section 4.1 samples it: what was acknowledged between
//! the sending of a packet and its acknowledgement, over the longer of the time it took to send
//! that and the time it took to acknowledge it. ACKs that come close together, late, or for many
//! packets at once do not move it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Instants of sending that are remembered. A window of 16 MB in datagrams of 1200 bytes, each sent
/// alone, is 14,000; when it is full the oldest is forgotten, and its acknowledgement gives no
/// sample.
const MAX_SENDS: usize = 16 << 10;
/// Datagrams below this size are taken for bare acknowledgements, which QUIC reports as sent but
/// never as acknowledged.
const SMALL: u64 = 200;

/// The state when the packets of one instant were sent.
#[derive(Debug, Clone, Copy)]
struct Send {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    is_app_limited: bool,
}

/// The rate over the latest round trip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes a second; `None` where the interval is too short to tell.
    pub(super) rate: Option<f64>,
    pub(super) rtt: Duration,
    /// When the newest packet of those just acknowledged was sent.
    pub(super) sent: Instant,
    /// Bytes delivered when it was sent.
    pub(super) prior_delivered: u64,
    pub(super) is_app_limited: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Sampler {
    /// Ordered by time; begins with the newest that was acknowledged.
    sends: VecDeque<Send>,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    in_flight: u64,
    /// While less than this was delivered, samples contain a pause of the application.
    app_limited_until: Option<u64>,
    /// The newest packet of the acknowledgements that are being read.
    newest: Option<Instant>,
}

impl Sampler {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            sends: VecDeque::new(),
            delivered: 0,
            delivered_at: now,
            first_sent_at: now,
            in_flight: 0,
            app_limited_until: None,
            newest: None,
        }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn sent(&mut self, now: Instant, bytes: u64) {
        if bytes < SMALL {
            return;
        }
        if self.in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        self.in_flight += bytes;
        if self.sends.back().is_some_and(|last| last.at >= now) {
            return;
        }
        if self.sends.len() == MAX_SENDS {
            self.sends.pop_front();
        }
        self.sends.push_back(Send {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            is_app_limited: self.app_limited_until.is_some(),
        });
    }

    /// One packet was acknowledged.
    pub(super) fn acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.newest = self.newest.max(Some(sent));
    }

    /// All packets of an ACK frame were given to [`Self::acked`]. A sample shorter than `min_rtt`
    /// has no rate.
    pub(super) fn end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        min_rtt: Duration,
    ) -> Option<Sample> {
        self.in_flight = in_flight;
        let sent = self.newest.take()?;
        if self
            .app_limited_until
            .is_some_and(|until| self.delivered > until)
        {
            self.app_limited_until = None;
        }
        let sample = self.sample(now, sent, min_rtt);
        if app_limited {
            self.app_limited_until = Some(self.delivered + in_flight);
        }

        sample
    }

    fn sample(&mut self, now: Instant, sent: Instant, min_rtt: Duration) -> Option<Sample> {
        while self.sends.front().is_some_and(|send| send.at < sent) {
            self.sends.pop_front();
        }
        // Older than the newest before it, or a probe of the datagram size.
        let send = *self.sends.front().filter(|send| send.at == sent)?;
        self.first_sent_at = self.first_sent_at.max(sent);
        let interval = now
            .saturating_duration_since(send.delivered_at)
            .max(sent.saturating_duration_since(send.first_sent_at));
        let is_long_enough = !interval.is_zero() && interval >= min_rtt;
        let delivered = (self.delivered - send.delivered) as f64;

        Some(Sample {
            rate: is_long_enough.then(|| delivered / interval.as_secs_f64()),
            rtt: now.saturating_duration_since(sent),
            sent,
            prior_delivered: send.delivered,
            is_app_limited: send.is_app_limited,
        })
    }
}

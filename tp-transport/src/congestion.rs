//! Congestion control that knows which path is in use.
//!
//! A full byte stream is back-pressure and never a loss, so a stock controller's window grows
//! without end on the stream path and then floods the UDP path. So the stream path has a fixed window,
//! and the UDP path that of [`bbr`], which restarts at every switch and ignores acknowledgements of
//! packets sent before it.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use tp_core::path::PathKind;

use self::bbr::Bbr;

mod aggregation;
mod bbr;
mod filter;
mod rate;
mod round;

/// Window on the stream path: what 16 MB of stream window can have in flight.
const STREAM_WINDOW: u64 = 16 << 20;

/// The path in use and how often it changed. One per connection, read at every packet.
#[derive(Debug)]
pub(crate) struct PathEpoch(AtomicU64);

impl Default for PathEpoch {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl PathEpoch {
    fn load(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn path(&self) -> PathKind {
        self.load().path()
    }

    pub(crate) fn switches(&self) -> u64 {
        self.load().0 >> 1
    }

    /// Only one task of a connection switches.
    pub(crate) fn switch(&self, path: PathKind) {
        let bit = u64::from(path == PathKind::Udp);
        let next = ((self.switches() + 1) << 1) | bit;
        self.0.store(next, Ordering::Release);
    }
}

/// Number of switches, and the path in the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch(u64);

impl Epoch {
    fn path(self) -> PathKind {
        match self.0 & 1 {
            0 => PathKind::Stream,
            _ => PathKind::Udp,
        }
    }
}

/// Makes controllers that follow one connection's path.
#[derive(Debug)]
pub(crate) struct PathAwareFactory {
    epoch: Arc<PathEpoch>,
    /// True once the connection has had a controller.
    has_built: AtomicBool,
}

impl PathAwareFactory {
    pub(crate) fn new(epoch: Arc<PathEpoch>) -> Self {
        Self {
            epoch,
            has_built: AtomicBool::new(false),
        }
    }
}

impl ControllerFactory for PathAwareFactory {
    /// A server's QUIC asks for one at each address that its client moves to, before it is known which
    /// path that is: until then the window is that of an unknown path.
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let seen = self.epoch.load();
        let is_unknown = self.has_built.swap(true, Ordering::Relaxed);

        Box::new(PathAware {
            epoch: Arc::clone(&self.epoch),
            seen,
            since: now,
            mtu,
            udp: (is_unknown || seen.path() == PathKind::Udp).then(|| Bbr::new(now, mtu)),
            has_acks: false,
        })
    }
}

#[derive(Clone)]
struct PathAware {
    epoch: Arc<PathEpoch>,
    seen: Epoch,
    /// When the path that was last seen came into use.
    since: Instant,
    mtu: u16,
    /// The controller of the UDP path; `None` on the stream path.
    udp: Option<Bbr>,
    /// True if the ACK frame acknowledges packets of this path.
    has_acks: bool,
}

impl PathAware {
    fn follow(&mut self, now: Instant) {
        let epoch = self.epoch.load();
        if epoch != self.seen {
            self.seen = epoch;
            self.since = now;
            self.has_acks = false;
            self.udp = (epoch.path() == PathKind::Udp).then(|| Bbr::new(now, self.mtu));
        }
    }

    /// The controller, unless the packet was sent on the path before.
    fn udp_since(&mut self, now: Instant, sent: Instant) -> Option<&mut Bbr> {
        self.follow(now);
        self.udp.as_mut().filter(|_| sent >= self.since)
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        if let Some(udp) = self.udp_since(now, sent) {
            udp.on_ack(now, sent, bytes);
            self.has_acks = true;
        }
        // QUIC has validated the address by now, and no switch to UDP was reported.
        if self.seen.path() == PathKind::Stream {
            self.udp = None;
        }
    }
}

impl Controller for PathAware {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.follow(now);
        if let Some(udp) = &mut self.udp {
            udp.on_sent(now, bytes);
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.acked(now, sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.follow(now);
        if std::mem::take(&mut self.has_acks)
            && let Some(udp) = &mut self.udp
        {
            udp.on_end_acks(now, in_flight, app_limited);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if let Some(udp) = self.udp_since(now, sent) {
            udp.on_lost(now, sent, lost_bytes, is_persistent_congestion);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        if let Some(udp) = &mut self.udp {
            udp.on_mtu_update(new_mtu);
        }
    }

    /// Follows a switch at once: the first packet after it is checked against the window before
    /// any other method is called.
    fn window(&self) -> u64 {
        let epoch = self.epoch.load();
        match &self.udp {
            Some(udp) if epoch == self.seen => udp.window(),
            // Bytes in flight on the stream must not hold back the first packets by UDP.
            _ => STREAM_WINDOW,
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        match &self.udp {
            None => STREAM_WINDOW,
            Some(udp) => udp.initial_window(),
        }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;

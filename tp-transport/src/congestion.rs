//! Congestion control that knows which path is in use.
//!
//! A full byte stream is back-pressure and never a loss, so a stock controller's window grows
//! without end on path T and then floods path U. On T the window is fixed; on U it is BBR's,
//! started afresh at every switch, and acknowledgements of packets sent before the switch do not
//! count for it.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use crate::status::PathKind;

/// Window on path T: what 16 MB of stream window can have in flight.
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
}

impl PathAwareFactory {
    pub(crate) fn new(epoch: Arc<PathEpoch>) -> Self {
        Self { epoch }
    }
}

impl ControllerFactory for PathAwareFactory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let seen = self.epoch.load();

        Box::new(PathAware {
            epoch: Arc::clone(&self.epoch),
            seen,
            since: now,
            mtu,
            udp: (seen.path() == PathKind::Udp).then(|| bbr(now, mtu)),
        })
    }
}

fn bbr(now: Instant, mtu: u16) -> Box<dyn Controller> {
    let mut controller = Arc::new(BbrConfig::default()).build(now, mtu);
    controller.on_mtu_update(mtu);

    controller
}

struct PathAware {
    epoch: Arc<PathEpoch>,
    seen: Epoch,
    /// When the path that was last seen came into use.
    since: Instant,
    mtu: u16,
    /// The controller of path U; `None` on path T.
    udp: Option<Box<dyn Controller>>,
}

impl PathAware {
    fn follow(&mut self, now: Instant) {
        let epoch = self.epoch.load();
        if epoch != self.seen {
            self.seen = epoch;
            self.since = now;
            self.udp = (epoch.path() == PathKind::Udp).then(|| bbr(now, self.mtu));
        }
    }
}

impl Controller for PathAware {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.follow(now);
        if let Some(udp) = &mut self.udp {
            udp.on_sent(now, bytes, last_packet_number);
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.follow(now);
        if let Some(udp) = self.udp.as_mut().filter(|_| sent >= self.since) {
            udp.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.follow(now);
        if let Some(udp) = &mut self.udp {
            udp.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.follow(now);
        if let Some(udp) = self.udp.as_mut().filter(|_| sent >= self.since) {
            udp.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
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
        match (&self.udp, epoch.path()) {
            (_, PathKind::Stream) => STREAM_WINDOW,
            (Some(udp), PathKind::Udp) => udp.window(),
            // What is in flight on the stream must not keep the first packets from U.
            (None, PathKind::Udp) => STREAM_WINDOW,
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            epoch: Arc::clone(&self.epoch),
            seen: self.seen,
            since: self.since,
            mtu: self.mtu,
            udp: self.udp.as_ref().map(|udp| udp.clone_box()),
        })
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
mod tests {
    use super::*;

    #[test]
    fn the_window_is_fixed_on_the_stream_and_starts_small_on_udp() {
        let (epoch, mut controller, now) = controller();

        assert_eq!(controller.window(), STREAM_WINDOW);
        epoch.switch(PathKind::Udp);
        controller.on_sent(now, 1200, 1);
        assert!(controller.window() < 1 << 20, "{}", controller.window());
        epoch.switch(PathKind::Stream);
        assert_eq!(controller.window(), STREAM_WINDOW);
    }

    #[test]
    fn a_loss_on_the_stream_is_no_congestion() {
        let (_, mut controller, now) = controller();

        controller.on_congestion_event(now, now, true, 1 << 20);

        assert_eq!(controller.window(), STREAM_WINDOW);
    }

    #[test]
    fn switches_are_counted() {
        let epoch = PathEpoch::default();

        epoch.switch(PathKind::Udp);
        epoch.switch(PathKind::Stream);
        epoch.switch(PathKind::Udp);

        assert_eq!((epoch.switches(), epoch.path()), (3, PathKind::Udp));
    }

    fn controller() -> (Arc<PathEpoch>, Box<dyn Controller>, Instant) {
        let epoch = Arc::new(PathEpoch::default());
        let now = Instant::now();
        let factory = Arc::new(PathAwareFactory::new(Arc::clone(&epoch)));

        (epoch, factory.build(now, 1200), now)
    }
}

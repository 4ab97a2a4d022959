//! Flows that share a wire, in virtual time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::ControllerFactory;

use super::{
    quic::{Demand, Quic},
    tcp::Tcp,
    wire::{Packet, Path, Wire},
};

/// Both ends of a connection that sends in one direction.
pub(super) trait Flow {
    fn arrive(&mut self, now: Instant, packets: Vec<Packet>, out: &mut Vec<Packet>);

    fn wake(&mut self, now: Instant, out: &mut Vec<Packet>);

    fn timeout(&mut self) -> Option<Instant>;

    /// Why the connection is gone, if it is.
    fn lost(&self) -> Option<&str> {
        None
    }
}

pub(super) type Factory = Arc<dyn ControllerFactory + Send + Sync>;

/// One run: who sends over what, and for how long.
pub(super) struct Run {
    pub(super) path: Path,
    /// Paths that come later.
    pub(super) changes: Vec<(Duration, Path)>,
    pub(super) quic: Vec<(Factory, Demand)>,
    /// From when to when TCP sends beside, as the last flow.
    pub(super) tcp: Option<(Duration, Duration)>,
    pub(super) length: Duration,
}

impl Run {
    pub(super) fn new(path: Path, factory: Factory) -> Self {
        Self {
            path,
            changes: Vec::new(),
            quic: vec![(factory, Demand::Endless)],
            tcp: None,
            length: Duration::from_secs(10),
        }
    }

    pub(super) fn go(self) -> Wire {
        let start = Instant::now();
        let end = start + self.length;
        let mut flows: Vec<Box<dyn Flow>> = Vec::new();
        for (factory, demand) in self.quic {
            flows.push(Box::new(Quic::new(flows.len(), start, factory, demand)));
        }
        if let Some((from, to)) = self.tcp {
            flows.push(Box::new(Tcp::new(flows.len(), start + from, start + to)));
        }
        let mut wire = Wire::new(start, self.path, flows.len());
        let mut changes = self.changes.into_iter().peekable();
        let mut now = start;
        let mut out = Vec::new();
        while now < end {
            if let Some((_, path)) = changes.next_if(|(at, _)| start + *at <= now) {
                wire.path = path;
            }
            loop {
                let arrived = wire.arrivals(now);
                let Some(flow) = arrived.first().map(|packet| packet.flow) else {
                    break;
                };
                flows[flow].arrive(now, arrived, &mut out);
                out.drain(..).for_each(|packet| wire.send(now, packet));
            }
            for flow in &mut flows {
                let timeout = flow.timeout().map(|timeout| wire.awake(false, timeout));
                if timeout.is_some_and(|timeout| timeout <= now) {
                    flow.wake(now, &mut out);
                    out.drain(..).for_each(|packet| wire.send(now, packet));
                }
            }
            let timeouts = flows.iter_mut().filter_map(|flow| flow.timeout());
            let timeouts = timeouts.map(|timeout| wire.awake(false, timeout));
            let next = timeouts.chain(wire.next()).min().unwrap_or(end);
            // A timer that asks again for the same moment must not stop time.
            now = next.max(now + Duration::from_micros(1));
        }
        wire.lost = flows
            .iter()
            .filter_map(|flow| flow.lost().map(str::to_owned))
            .collect();

        wire
    }
}

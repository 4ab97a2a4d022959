//! A TCP upload beside: slow start, then the window of CUBIC where it behaves as Reno does
//! (RFC 9438 section 4.3) and as the cube where that is larger (section 4.2), with selective
//! acknowledgements.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    sim::Flow,
    wire::{Data, Packet},
};

const SIZE: usize = 1500;
const BETA: f64 = 0.7;
const C: f64 = 0.4;
const REORDERING: u64 = 3;
const TIMEOUT: Duration = Duration::from_millis(300);

/// A segment, or the acknowledgement of one.
pub(super) struct Segment(u64);

pub(super) struct Tcp {
    flow: usize,
    starts_at: Instant,
    ends_at: Instant,
    next: u64,
    /// Sent and not acknowledged, with the time of sending.
    flight: BTreeMap<u64, Instant>,
    window: f64,
    threshold: f64,
    largest_before_loss: f64,
    loss_at: Instant,
    /// Losses of segments before this one belong to the last reduction.
    recovery: u64,
    rtt: Duration,
    acks: VecDeque<u64>,
}

impl Tcp {
    pub(super) fn new(flow: usize, starts_at: Instant, ends_at: Instant) -> Self {
        Self {
            flow,
            starts_at,
            ends_at,
            next: 0,
            flight: BTreeMap::new(),
            window: 10.0,
            threshold: f64::INFINITY,
            largest_before_loss: 0.0,
            loss_at: starts_at,
            recovery: 0,
            rtt: Duration::from_millis(100),
            acks: VecDeque::new(),
        }
    }

    fn send(&mut self, now: Instant, out: &mut Vec<Packet>) {
        if now < self.starts_at || now >= self.ends_at {
            return;
        }
        while (self.flight.len() as f64) < self.window {
            self.flight.insert(self.next, now);
            out.push(self.packet(self.next, true, SIZE));
            self.next += 1;
        }
    }

    fn packet(&self, number: u64, to_far_end: bool, size: usize) -> Packet {
        Packet {
            flow: self.flow,
            to_far_end,
            size: size + 14,
            data: Data::Tcp(Segment(number)),
        }
    }

    fn acked(&mut self, now: Instant, number: u64) {
        let Some(sent) = self.flight.remove(&number) else {
            return;
        };
        self.rtt = now - sent;
        if self.window < self.threshold {
            self.window += 1.0;
        } else {
            let reno = 3.0 * (1.0 - BETA) / (1.0 + BETA) / self.window;
            let k = (self.largest_before_loss * (1.0 - BETA) / C).cbrt();
            let time = (now - self.loss_at + self.rtt).as_secs_f64() - k;
            let cube = C * time.powi(3) + self.largest_before_loss;
            self.window += reno.max((cube - self.window) / self.window).min(0.5);
        }
        let lost = self.flight.range(..number.saturating_sub(REORDERING));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        for lost in lost {
            self.flight.remove(&lost);
            if lost >= self.recovery {
                self.largest_before_loss = self.window;
                self.window = (self.window * BETA).max(2.0);
                self.threshold = self.window;
                self.loss_at = now;
                self.recovery = self.next;
            }
        }
    }
}

impl Flow for Tcp {
    fn arrive(&mut self, now: Instant, packets: Vec<Packet>, out: &mut Vec<Packet>) {
        for packet in packets {
            let Data::Tcp(Segment(number)) = packet.data else {
                unreachable!("a segment of TCP");
            };
            match packet.to_far_end {
                true => self.acks.push_back(number),
                false => self.acked(now, number),
            }
        }
        while let Some(number) = self.acks.pop_front() {
            out.push(self.packet(number, false, 60));
        }
        self.send(now, out);
    }

    fn wake(&mut self, now: Instant, out: &mut Vec<Packet>) {
        let oldest = self.flight.values().min();
        if oldest.is_some_and(|sent| now >= *sent + TIMEOUT) {
            self.flight.clear();
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = 2.0;
        }
        self.send(now, out);
    }

    fn timeout(&mut self) -> Option<Instant> {
        match self.flight.values().min() {
            Some(oldest) => Some(*oldest + TIMEOUT),
            None => Some(self.starts_at),
        }
    }
}

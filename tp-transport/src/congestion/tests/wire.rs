//! A bottleneck in virtual time: a token bucket before a queue that drops what does not fit, then a
//! delay each way. As `tc tbf`, and as most access links.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use fastrand::Rng;

use super::tcp::Segment;

/// Headers of IPv4, UDP and Ethernet.
pub(super) const HEADERS: usize = 42;
const BUCKET: Duration = Duration::from_millis(10);
/// Once in each an end gets no processor.
const TURN: Duration = Duration::from_millis(50);

/// The network between two ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) mbit: u64,
    /// Round-trip time without a queue.
    pub(super) rtt: Duration,
    /// The time that a full queue takes to drain.
    pub(super) queue: Duration,
    /// Bytes that leave at once after a pause.
    pub(super) burst: u64,
    /// Packets that return are up to this much later.
    pub(super) jitter: Duration,
    /// Packets that arrive at the far end wait for the next multiple of this, as on a radio link.
    pub(super) gather: Duration,
    /// The longest time for which an end gets no processor: once in each [`TURN`], for any part of it.
    pub(super) stall: Duration,
    /// Of a thousand packets, how many are lost for no reason.
    pub(super) lost_per_mille: u64,
}

impl Path {
    pub(super) const fn new(mbit: u64, rtt_ms: u64, queue_ms: u64) -> Self {
        Self {
            mbit,
            rtt: Duration::from_millis(rtt_ms),
            queue: Duration::from_millis(queue_ms),
            burst: 3000,
            jitter: Duration::ZERO,
            gather: Duration::ZERO,
            stall: Duration::ZERO,
            lost_per_mille: 0,
        }
    }

    pub(super) fn bytes_per_second(&self) -> f64 {
        self.mbit as f64 * 1e6 / 8.0
    }

    fn time_of(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second())
    }
}

pub(super) enum Data {
    Quic(Vec<u8>),
    Tcp(Segment),
}

/// A packet of a flow, to its far end or back.
pub(super) struct Packet {
    pub(super) flow: usize,
    pub(super) to_far_end: bool,
    pub(super) size: usize,
    pub(super) data: Data,
}

struct Delivery {
    at: Instant,
    order: u64,
    packet: Packet,
}

impl PartialEq for Delivery {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Delivery {}

impl PartialOrd for Delivery {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delivery {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The bytes of one flow that entered and left the wire, in steps of [`BUCKET`].
#[derive(Debug, Default, Clone)]
pub(super) struct Counts {
    sent: Vec<u64>,
    arrived: Vec<u64>,
}

pub(super) struct Wire {
    pub(super) path: Path,
    /// Why connections ended.
    pub(super) lost: Vec<String>,
    start: Instant,
    /// When the link has sent everything in its queue, less what is in the bucket.
    free_at: Instant,
    deliveries: BinaryHeap<Reverse<Delivery>>,
    order: u64,
    /// The same in every run.
    random: Rng,
    counts: Vec<Counts>,
    /// The longest wait of each step.
    waits: Vec<Duration>,
}

impl Wire {
    pub(super) fn new(start: Instant, path: Path, flows: usize) -> Self {
        Self {
            path,
            lost: Vec::new(),
            start,
            free_at: start,
            deliveries: BinaryHeap::new(),
            order: 0,
            random: Rng::with_seed(0),
            counts: vec![Counts::default(); flows],
            waits: Vec::new(),
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.deliveries.peek().map(|next| next.0.at)
    }

    /// Everything for one end of one flow that arrives by `now`.
    pub(super) fn arrivals(&mut self, now: Instant) -> Vec<Packet> {
        let mut arrived: Vec<Packet> = Vec::new();
        while let Some(next) = self.deliveries.peek().map(|next| &next.0) {
            let is_other = arrived.first().is_some_and(|first| {
                (first.flow, first.to_far_end) != (next.packet.flow, next.packet.to_far_end)
            });
            if next.at > now || is_other {
                break;
            }
            let packet = self.deliveries.pop().expect("it was there").0.packet;
            if packet.to_far_end {
                let bucket = self.bucket(now);
                add(&mut self.counts[packet.flow].arrived, bucket, packet.size);
            }
            arrived.push(packet);
        }

        arrived
    }

    pub(super) fn send(&mut self, now: Instant, packet: Packet) {
        let at = match packet.to_far_end {
            true => match self.through_the_queue(now, &packet) {
                Some(at) => self.gathered(at + self.path.rtt / 2),
                None => return,
            },
            false => {
                let jitter = self.path.jitter.mul_f64(self.random.f64());
                now + self.path.rtt / 2 + jitter
            }
        };
        let at = self.awake(packet.to_far_end, at);
        self.order += 1;
        self.deliveries.push(Reverse(Delivery {
            at,
            order: self.order,
            packet,
        }));
    }

    /// When the packet leaves, unless it is dropped.
    fn through_the_queue(&mut self, now: Instant, packet: &Packet) -> Option<Instant> {
        let bucket = self.bucket(now);
        add(&mut self.counts[packet.flow].sent, bucket, packet.size);
        let saved = Duration::from_secs_f64(self.path.burst as f64 / self.path.bytes_per_second());
        let wait = self.free_at.saturating_duration_since(now);
        if wait > self.path.queue || self.random.f64() * 1000.0 < self.path.lost_per_mille as f64 {
            return None;
        }
        self.free_at = self.free_at.max(now - saved) + self.path.time_of(packet.size);
        if self.waits.len() <= bucket {
            self.waits.resize(bucket + 1, Duration::ZERO);
        }
        self.waits[bucket] = self.waits[bucket].max(wait);

        Some(self.free_at.max(now))
    }

    /// When an end that would do something at a moment gets to it.
    pub(super) fn awake(&self, is_far_end: bool, at: Instant) -> Instant {
        if self.path.stall.is_zero() {
            return at;
        }
        let turn = (at - self.start).as_nanos() / TURN.as_nanos();
        let mut random = Rng::with_seed((turn as u64) << 1 | u64::from(is_far_end));
        let length = self.path.stall.mul_f64(random.f64());
        let begin = self.start + TURN * turn as u32 + (TURN - length).mul_f64(random.f64());

        if begin <= at {
            at.max(begin + length)
        } else {
            at
        }
    }

    fn gathered(&self, at: Instant) -> Instant {
        match self.path.gather.as_nanos() {
            0 => at,
            step => {
                let steps = (at - self.start).as_nanos().div_ceil(step);
                self.start + Duration::from_nanos((steps * step) as u64)
            }
        }
    }

    fn bucket(&self, now: Instant) -> usize {
        ((now - self.start).as_nanos() / BUCKET.as_nanos()) as usize
    }

    /// Bytes that a flow sent between two moments.
    pub(super) fn sent(&self, flow: usize, from: Duration, to: Duration) -> f64 {
        sum(&self.counts[flow].sent, from, to)
    }

    /// Bytes of a flow that arrived between two moments.
    pub(super) fn arrived(&self, flow: usize, from: Duration, to: Duration) -> f64 {
        sum(&self.counts[flow].arrived, from, to)
    }

    /// The bound that nine of ten steps between two moments kept below.
    pub(super) fn wait_of_most(&self, from: Duration, to: Duration) -> Duration {
        let (from, to) = buckets(from, to, self.waits.len());
        let mut waits = self.waits[from..to].to_vec();
        waits.sort_unstable();

        waits[waits.len() * 9 / 10]
    }

    /// The longest wait in the queue between two moments.
    pub(super) fn longest_wait(&self, from: Duration, to: Duration) -> Duration {
        let (from, to) = buckets(from, to, self.waits.len());
        self.waits[from..to]
            .iter()
            .max()
            .copied()
            .unwrap_or_default()
    }
}

fn add(buckets: &mut Vec<u64>, index: usize, size: usize) {
    if buckets.len() <= index {
        buckets.resize(index + 1, 0);
    }
    buckets[index] += size as u64;
}

fn buckets(from: Duration, to: Duration, length: usize) -> (usize, usize) {
    let index = |time: Duration| ((time.as_nanos() / BUCKET.as_nanos()) as usize).min(length);

    (index(from), index(to))
}

fn sum(counts: &[u64], from: Duration, to: Duration) -> f64 {
    let (from, to) = buckets(from, to, counts.len());

    counts[from..to].iter().sum::<u64>() as f64
}

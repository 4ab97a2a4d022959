//! Limits the bytes that one end of a session has received and not passed on yet: for each flow, and
//! for all of them together.
//!
//! A flow is granted credit, and granted more as its bytes are passed on. Every flow always gets
//! [`Limits::floor`], so that readers that have stopped, however many, cannot stop another flow.
//! Credit above the floors comes from a shared budget: a flow may have half of what is left of it,
//! which is the dynamic threshold of Choudhury and Hahne ("Dynamic queue length thresholds for
//! shared-memory packet switches", 1998), and a part is reserved for new flows. A flow's window
//! follows its reader, as in Fisk and Feng's dynamic right-sizing ("Dynamic adjustment of TCP window
//! sizes", 2000): it doubles when a window was passed on within few round trips, and halves when
//! that took very many.

use std::time::Duration;

/// A window that is passed on within so many round trips limits its sender.
const FAST_ROUND_TRIPS: u32 = 4;
/// One that takes so many is much larger than its reader needs.
const SLOW_ROUND_TRIPS: u32 = 256;
/// Shorter round trips count as this one: below it the two programs set the speed, not the path.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(2);
/// A new flow gets at most this part of the shared credit that is left.
const START_PART: u64 = 128;
/// Credit is granted once it is worth this part of the window.
const GRANT_PART: u64 = 4;

/// Bounds on what one end may have to buffer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows that may be open at once.
    pub flows: u64,
    /// Guaranteed to every flow.
    pub floor: u64,
    /// Initial window of a flow, while shared credit is left.
    pub start: u64,
    /// Largest window of one flow.
    pub window: u64,
    /// Credit above the floors, for all flows together.
    pub shared: u64,
    /// Part of `shared` that is reserved for new flows.
    pub starts: u64,
}

impl Limits {
    /// The most that all flows together are ever granted and have not passed on.
    pub const fn budget(&self) -> u64 {
        self.flows * self.floor + self.shared
    }
}

/// The peer sent more than it was granted, or gave back credit that it does not have. Nothing was
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more bytes than were granted")]
pub struct Exceeded;

/// The credit of all flows of one session.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    flows: u64,
    /// Granted above the floors and not passed on.
    taken: u64,
}

/// One flow's part in a [`Pool`], to be given back with [`Pool::close`].
#[derive(Debug)]
pub struct Share {
    /// Granted and not passed on.
    held: u64,
    /// The most that the flow may hold, if shared credit is left.
    window: u64,
    /// Passed on since `since`.
    passed: u64,
    since: Duration,
}

impl Share {
    /// Granted and not passed on, in bytes.
    pub fn held(&self) -> u64 {
        self.held
    }
}

impl Pool {
    /// A pool without flows. `limits.start` and `limits.window` are at least `limits.floor`.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            flows: 0,
            taken: 0,
        }
    }

    /// A new flow, which has been granted [`Share::held`]; `None` if [`Limits::flows`] are open.
    /// `now` is the time since any fixed moment, the same one for all calls.
    pub fn open(&mut self, now: Duration) -> Option<Share> {
        if self.flows == self.limits.flows {
            return None;
        }
        let above = (self.limits.start - self.limits.floor).min(self.left() / START_PART);
        self.flows += 1;
        self.taken += above;

        Some(Share {
            held: self.limits.floor + above,
            window: self.limits.start,
            passed: 0,
            since: now,
        })
    }

    /// Ends a flow: its credit is free for others.
    pub fn close(&mut self, share: Share) {
        self.flows -= 1;
        self.taken -= self.above(share.held);
    }

    /// `bytes` of the flow are passed on at `now`. Returns how many bytes it is granted; 0 if what
    /// could be granted is not worth a message. `round_trip` is asked only when it matters.
    ///
    /// # Errors
    ///
    /// [`Exceeded`] if the flow was not granted as many bytes.
    pub fn pass_on(
        &mut self,
        share: &mut Share,
        bytes: u64,
        now: Duration,
        round_trip: impl FnOnce() -> Duration,
    ) -> Result<u64, Exceeded> {
        self.lower(share, bytes)?;
        share.passed += bytes;
        if share.passed >= share.window / 2 {
            self.tune(share, now, round_trip().max(MIN_ROUND_TRIP));
        }

        Ok(self.grant(share))
    }

    /// The sender gives `bytes` of its credit back.
    ///
    /// # Errors
    ///
    /// [`Exceeded`] if it does not have as many.
    pub fn give_back(&mut self, share: &mut Share, bytes: u64) -> Result<(), Exceeded> {
        self.lower(share, bytes)
    }

    /// Granted to all flows and not passed on, in bytes, where a flow counts with no less than its floor.
    pub fn held(&self) -> u64 {
        self.flows * self.limits.floor + self.taken
    }

    fn grant(&mut self, share: &mut Share) -> u64 {
        let Limits { floor, starts, .. } = self.limits;
        let own = self.above(share.held);
        let left = self.left() + own;
        let half = left.saturating_sub(starts) / 2;
        let least = (self.limits.start - floor).min(left / START_PART);
        let target = floor + (share.window - floor).min(half.max(least));
        let more = target.saturating_sub(share.held);
        if more < target / GRANT_PART {
            return 0;
        }
        self.taken -= own;
        share.held = target;
        self.taken += self.above(target);

        more
    }

    fn tune(&self, share: &mut Share, now: Duration, round_trip: Duration) {
        let took = now.saturating_sub(share.since).as_nanos() * u128::from(share.window);
        let round_trips = round_trip.as_nanos() * u128::from(share.passed);
        if took < round_trips * u128::from(FAST_ROUND_TRIPS) {
            share.window = (share.window * 2).min(self.limits.window);
        } else if took > round_trips * u128::from(SLOW_ROUND_TRIPS) {
            share.window = (share.window / 2).max(self.limits.start);
        }
        share.passed = 0;
        share.since = now;
    }

    fn lower(&mut self, share: &mut Share, bytes: u64) -> Result<(), Exceeded> {
        let held = share.held.checked_sub(bytes).ok_or(Exceeded)?;
        self.taken -= self.above(share.held) - self.above(held);
        share.held = held;

        Ok(())
    }

    fn above(&self, held: u64) -> u64 {
        held.saturating_sub(self.limits.floor)
    }

    fn left(&self) -> u64 {
        self.limits.shared - self.taken
    }
}

#[cfg(test)]
mod tests;

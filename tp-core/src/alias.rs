//! The life cycle of an alias: when it may stand for another real address.
//!
//! ```text
//!                                 its own address is wanted again
//!                              ┌────────────────────────────────────┐
//!                              ▼                                    │
//!  ┌───────┐   address    ┌────────┐       Quarantine        ┌──────┴─────┐
//!  │ fresh ├─────────────►│ in use ├────────────────────────►│ quarantine ├──┐
//!  └───────┘  is wanted   └────────┘  least recently used,   └──────┬─────┘  │ still held
//!                              ▲      and nobody holds it           │     ▲  │ or pinned
//!                              │                                    │     └──┘
//!                     another  │     ┌──────┐         Free          │
//!                     address  └─────┤ free │◄──────────────────────┘
//!                    is wanted       └──────┘   time is over, and nobody holds it
//! ```
//!
//! The eBPF programs take the edges that begin with a wanted address, at any moment.
//! [`LifeCycle`] decides the edges `Quarantine` and `Free`, for the aliases of one owner. Here an
//! alias is an index, whatever its address. The caller reads and changes the maps and searches
//! for sockets.
//!
//! After an alias is quarantined no new socket receives it, unless its own address is wanted
//! again. A hook that read it just before finishes within microseconds; the quarantine lasts
//! minutes. From then on the kernel's socket diagnosis shows the alias of each socket that has
//! one: as the peer in the application, from the first SYN to the last acknowledgement, or as the
//! local end in the relay. A pinned alias never stands for another address, because its holders
//! are unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    ops::Range,
    time::{Duration, Instant},
};

pub mod ranges;

/// The usual length of a quarantine. Longer than any hook runs, than the kernel keeps a closed
/// connection in TIME_WAIT, and than an application takes to read a name from a message about a
/// connection that it has closed.
pub const QUARANTINE_LIFETIME: Duration = Duration::from_secs(120);
/// The most aliases that one scan quarantines, and the most that it frees.
pub const BATCH: usize = 512;
/// Between two scans.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// An alias that stands for an address, as the kernel's table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Its index among the aliases, from 0.
    pub index: u32,
    /// When a socket last received it; larger is later.
    pub last_use: u32,
    /// It must never stand for another address.
    pub is_pinned: bool,
}

/// The aliases of a request that must stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// Sockets or flows have them.
    pub held: BTreeSet<u32>,
    /// They must never stand for another address.
    pub pinned: BTreeSet<u32>,
}

impl Holders {
    fn have(&self, index: u32) -> bool {
        self.held.contains(&index) || self.pinned.contains(&index)
    }
}

/// An operation for the caller, to be done in the order of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find the holders of these, at most [`BATCH`], then call [`LifeCycle::handle_holders`].
    FindHolders(Vec<u32>),
    /// Read which aliases stand for an address, then call [`LifeCycle::handle_table`].
    ReadTable,
    /// Quarantine this alias, then call [`LifeCycle::handle_quarantined`] or
    /// [`LifeCycle::handle_refused`].
    Quarantine(u32),
    /// Free this alias unless it has come back into use, then call
    /// [`LifeCycle::handle_released`].
    Free(u32),
    /// Make this alias look as if a socket had received it at `last_use`.
    Refresh {
        /// The alias.
        index: u32,
        /// As in [`InUse::last_use`].
        last_use: u32,
    },
}

/// The progress of a scan.
#[derive(Debug)]
enum Phase {
    Waiting,
    /// Waits for the holders of these, whose quarantine is over.
    Ending(Vec<u32>),
    Reading,
    /// Waits for the holders of these, which were least recently used.
    Beginning(Vec<u32>),
}

/// The life cycle of the aliases of one owner.
///
/// It scans them at intervals once half of them have ever been used: [`LifeCycle::poll_timeout`]
/// says when.
#[derive(Debug)]
pub struct LifeCycle {
    indices: Range<u32>,
    quarantine: Duration,
    /// The start of each alias's quarantine. One that came back into use stays here until its
    /// time is over, and cannot be freed then.
    quarantined: BTreeMap<u32, Instant>,
    phase: Phase,
    /// The latest `last_use` in the table when it was read.
    latest: u32,
    next_scan: Instant,
}

impl LifeCycle {
    /// `indices` are the owner's slice of all aliases.
    pub fn new(indices: Range<u32>, quarantine: Duration, now: Instant) -> Self {
        let mut life = Self {
            indices,
            quarantine,
            quarantined: BTreeMap::new(),
            phase: Phase::Waiting,
            latest: 0,
            next_scan: now,
        };
        life.put_off(now);

        life
    }

    /// Begins a scan. `ever_used` is the number of the owner's aliases that are no longer fresh.
    pub fn handle_timeout(&mut self, ever_used: u32, now: Instant) -> Vec<Action> {
        if now < self.next_scan {
            return Vec::new();
        }
        self.put_off(now);
        self.phase = Phase::Waiting;
        if is_enough(ever_used, self.capacity()) {
            return Vec::new();
        }
        let due = self.due(now);
        if due.is_empty() {
            return vec![self.read()];
        }
        self.phase = Phase::Ending(due.clone());

        vec![Action::FindHolders(due)]
    }

    /// The answer to [`Action::FindHolders`].
    pub fn handle_holders(&mut self, holders: &Holders, now: Instant) -> Vec<Action> {
        self.put_off(now);
        match mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Ending(due) => {
                let (held, unheld): (Vec<u32>, Vec<u32>) =
                    due.into_iter().partition(|index| holders.have(*index));
                // Their quarantine starts over.
                self.quarantined
                    .extend(held.into_iter().map(|index| (index, now)));
                let mut actions: Vec<Action> = unheld.into_iter().map(Action::Free).collect();
                actions.push(self.read());

                actions
            }
            Phase::Beginning(chosen) => chosen
                .into_iter()
                .map(|index| {
                    if holders.have(index) {
                        self.refresh(index)
                    } else {
                        Action::Quarantine(index)
                    }
                })
                .collect(),
            Phase::Waiting | Phase::Reading => Vec::new(),
        }
    }

    /// The answer to [`Action::ReadTable`]. Aliases of other owners in it do not matter.
    pub fn handle_table(&mut self, mut table: Vec<InUse>, now: Instant) -> Vec<Action> {
        self.put_off(now);
        match self.phase {
            Phase::Reading => self.phase = Phase::Waiting,
            Phase::Waiting | Phase::Ending(_) | Phase::Beginning(_) => return Vec::new(),
        }
        table.retain(|alias| {
            self.indices.contains(&alias.index)
                && !alias.is_pinned
                && !self.quarantined.contains_key(&alias.index)
        });
        self.latest = table.iter().map(|alias| alias.last_use).max().unwrap_or(0);
        let chosen: Vec<u32> = least_recently_used(table, self.capacity())
            .iter()
            .map(|alias| alias.index)
            .collect();
        if chosen.is_empty() {
            return Vec::new();
        }
        self.phase = Phase::Beginning(chosen.clone());

        vec![Action::FindHolders(chosen)]
    }

    /// The answer to [`Action::Quarantine`]: the map has it.
    pub fn handle_quarantined(&mut self, index: u32, now: Instant) {
        self.put_off(now);
        self.quarantined.insert(index, now);
    }

    /// The answer to [`Action::Quarantine`]: the alias stays in use, because another alias of its
    /// address is in quarantine.
    pub fn handle_refused(&mut self, index: u32, now: Instant) -> Action {
        self.put_off(now);

        self.refresh(index)
    }

    /// The answer to [`Action::Free`]: the alias is free, or has come back into use.
    pub fn handle_released(&mut self, index: u32, now: Instant) {
        self.put_off(now);
        self.quarantined.remove(&index);
    }

    /// An action, or a query that a scan needs, failed: the scan ends here. The next one starts
    /// over, and nothing is forgotten.
    pub fn handle_failure(&mut self, now: Instant) {
        self.put_off(now);
        self.phase = Phase::Waiting;
    }

    /// When [`LifeCycle::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.next_scan
    }

    /// The next scan begins an interval after the last event of this one.
    fn put_off(&mut self, now: Instant) {
        self.next_scan = now + SCAN_INTERVAL.min(self.quarantine / 8);
    }

    fn capacity(&self) -> u32 {
        self.indices.end.saturating_sub(self.indices.start)
    }

    /// The aliases whose quarantine is over, at most [`BATCH`], the oldest first.
    fn due(&self, now: Instant) -> Vec<u32> {
        let mut due: Vec<(Instant, u32)> = self
            .quarantined
            .iter()
            .map(|(index, since)| (*since, *index))
            .filter(|(since, _)| now.saturating_duration_since(*since) >= self.quarantine)
            .collect();
        due.sort_unstable();
        due.truncate(BATCH);

        due.into_iter().map(|(_, index)| index).collect()
    }

    fn read(&mut self) -> Action {
        self.phase = Phase::Reading;

        Action::ReadTable
    }

    /// Puts this alias behind all others in the order of use.
    fn refresh(&self, index: u32) -> Action {
        Action::Refresh {
            index,
            last_use: self.latest,
        }
    }
}

fn is_enough(used: u32, capacity: u32) -> bool {
    used <= capacity / 2
}

/// The aliases to quarantine, so that half remains in use, at most [`BATCH`].
fn least_recently_used(mut used: Vec<InUse>, capacity: u32) -> Vec<InUse> {
    let surplus = used.len().saturating_sub(capacity as usize / 2).min(BATCH);
    if surplus < used.len() {
        used.select_nth_unstable_by_key(surplus, |alias| (alias.last_use, alias.index));
    }
    used.truncate(surplus);

    used
}

#[cfg(test)]
mod tests;

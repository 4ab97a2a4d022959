//! Gives aliases out again: those that were not used for longest are put to rest, and those that
//! have rested are freed, once half of a bundle's aliases stand for addresses.
//!
//! An alias that is put to rest is in the hands of no new socket, unless its own address is wanted
//! again. A hook that had read it just before is done, with its socket in the kernel's tables,
//! after microseconds; the rest lasts minutes. From then on a socket that has it shows it as its
//! peer, from the first SYN to the last acknowledgement, or a flow of the relay as its own end.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tp_ebpf_loader::{Aliases, UsedAlias};

use super::{
    diag::{self, End},
    netns::NetNamespace,
};

/// How long an alias rests. Longer than any hook runs, than the kernel keeps a closed connection in
/// TIME_WAIT, and than any application reads a name from a message about one that it has closed.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(120);
/// Between two looks at the aliases.
const PAUSE: Duration = Duration::from_secs(5);
/// What one look puts to rest, and what it frees.
const BATCH: usize = 512;

const _: () = assert!(BATCH <= diag::MAX_ADDRESSES);

/// Ends, with its thread, when dropped.
pub(crate) struct Recycler {
    freed: Arc<AtomicU64>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where sockets that have an alias can be.
pub(crate) struct Namespaces {
    /// Of the applications.
    pub(crate) host: NetNamespace,
    /// Of the relay.
    pub(crate) inner: NetNamespace,
}

impl Recycler {
    pub(crate) fn start(
        aliases: Aliases,
        namespaces: Namespaces,
        quarantine: Duration,
    ) -> io::Result<Self> {
        let freed = Arc::new(AtomicU64::new(0));
        let (stop_tx, stop_rx) = mpsc::channel();
        let mut rounds = Rounds {
            aliases,
            namespaces,
            quarantine,
            resting: VecDeque::new(),
            freed: Arc::clone(&freed),
        };
        let pause = PAUSE.min(quarantine / 8);
        let thread = thread::Builder::new()
            .name("aliases".to_owned())
            .spawn(move || {
                let mut has_failed = false;
                while stop_rx.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                    match rounds.round(Instant::now()) {
                        Ok(()) => has_failed = false,
                        Err(error) if has_failed => tracing::debug!(%error, "No alias is freed"),
                        Err(error) => {
                            has_failed = true;
                            let error = format!("{error:#}");
                            tracing::warn!(%error, "Aliases cannot be used again");
                        }
                    }
                }
            })?;

        Ok(Self {
            freed,
            stop: Some(stop_tx),
            thread: Some(thread),
        })
    }

    /// How many aliases were freed, ever.
    pub(crate) fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }
}

impl Drop for Recycler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The thread that frees aliases panicked");
        }
    }
}

struct Resting {
    index: u32,
    since: Instant,
}

struct Rounds {
    aliases: Aliases,
    namespaces: Namespaces,
    quarantine: Duration,
    /// In the order of `since`.
    resting: VecDeque<Resting>,
    freed: Arc<AtomicU64>,
}

impl Rounds {
    fn round(&mut self, now: Instant) -> anyhow::Result<()> {
        if is_enough(self.aliases.ever_used()?, self.aliases.capacity()) {
            return Ok(());
        }
        self.free_rested(now)?;
        self.rest_unused(now)
    }

    fn free_rested(&mut self, now: Instant) -> anyhow::Result<()> {
        let due = self
            .resting
            .iter()
            .take(BATCH)
            .take_while(|alias| now.duration_since(alias.since) >= self.quarantine)
            .count();
        let due: Vec<u32> = self
            .resting
            .iter()
            .take(due)
            .map(|alias| alias.index)
            .collect();
        let held = self.held(&due)?;
        for index in due {
            self.resting.pop_front();
            if held.contains(&self.aliases.address(index)) || self.aliases.is_pinned(index) {
                self.resting.push_back(Resting { index, since: now });
            } else if self.aliases.free(index)? {
                self.freed.fetch_add(1, Ordering::Relaxed);
            }
        }

        Ok(())
    }

    fn rest_unused(&mut self, now: Instant) -> anyhow::Result<()> {
        let resting: BTreeSet<u32> = self.resting.iter().map(|alias| alias.index).collect();
        let mut used = self.aliases.used()?;
        used.retain(|alias| !resting.contains(&alias.index));
        let latest = used.iter().map(|alias| alias.handed_out).max().unwrap_or(0);
        let chosen = least_recently_used(used, self.aliases.capacity());
        let indices: Vec<u32> = chosen.iter().map(|alias| alias.index).collect();
        let held = self.held(&indices)?;
        for alias in chosen {
            let is_held = held.contains(&self.aliases.address(alias.index));
            if is_held || !self.aliases.rest(alias.index)? {
                // Its turn comes again after all the others.
                self.aliases.refresh(alias, latest);
            } else {
                let index = alias.index;
                self.resting.push_back(Resting { index, since: now });
            }
        }

        Ok(())
    }

    /// Which of these aliases sockets have.
    fn held(&self, indices: &[u32]) -> io::Result<BTreeSet<Ipv4Addr>> {
        let addresses: Vec<Ipv4Addr> = indices
            .iter()
            .map(|index| self.aliases.address(*index))
            .collect();
        if addresses.is_empty() {
            return Ok(BTreeSet::new());
        }
        let Namespaces { host, inner } = &self.namespaces;
        let mut held = host.run(|| diag::addresses_in_use(&addresses, End::PeerProcess))?;
        held.extend(inner.run(|| diag::addresses_in_use(&addresses, End::Own))?);

        Ok(held)
    }
}

fn is_enough(used: u32, capacity: u32) -> bool {
    used <= capacity / 2
}

/// What is to rest, so that half remains, and at most [`BATCH`].
fn least_recently_used(mut used: Vec<UsedAlias>, capacity: u32) -> Vec<UsedAlias> {
    let surplus = used.len().saturating_sub(capacity as usize / 2).min(BATCH);
    if surplus < used.len() {
        used.select_nth_unstable_by_key(surplus, |alias| (alias.handed_out, alias.index));
    }
    used.truncate(surplus);

    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_aliases_may_be_in_use_undisturbed() {
        assert!(is_enough(128, 256));
        assert!(!is_enough(129, 256));
        assert!(least_recently_used(aliases(128), 256).is_empty());
    }

    #[test]
    fn what_was_used_last_rests_last() {
        let mut chosen = least_recently_used(aliases(150), 256);
        chosen.sort_unstable_by_key(|alias| alias.index);

        let indices: Vec<u32> = chosen.iter().map(|alias| alias.index).collect();
        assert_eq!(indices, (128..150).collect::<Vec<_>>());
    }

    #[test]
    fn one_round_is_bounded() {
        assert_eq!(least_recently_used(aliases(60_000), 65_280).len(), BATCH);
    }

    /// The first is the one that was used last.
    fn aliases(count: u32) -> Vec<UsedAlias> {
        (0..count)
            .map(|index| UsedAlias {
                index,
                handed_out: 100_000 - index,
            })
            .collect()
    }
}

//! The I/O of the life cycle of aliases ([`LifeCycle`]): a thread that performs its actions on the
//! maps of the data path and asks the kernel which sockets hold aliases.

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

use tp_core::alias::{Action, BATCH, Holders, InUse, LifeCycle};
use tp_ebpf_loader::{Aliases, UsedAlias};
use tp_sock_diag::{End, SocketFilter};

use super::{diag, netns::NetNamespace};

const _: () = assert!(BATCH <= SocketFilter::MAX);

/// The thread that quarantines and frees aliases. It ends when this is dropped.
pub(crate) struct Recycler {
    freed: Arc<AtomicU64>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The network namespaces whose sockets can hold an alias.
pub(crate) struct Namespaces {
    /// The namespace of the applications.
    pub(crate) host: NetNamespace,
    /// The private namespace, with the sockets of the relay.
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
        let mut worker = Worker {
            life: LifeCycle::new(aliases.indices(), quarantine, Instant::now()),
            aliases,
            namespaces,
            freed: Arc::clone(&freed),
        };
        let thread = thread::Builder::new()
            .name("aliases".to_owned())
            .spawn(move || {
                let mut has_failed = false;
                while stop_rx.recv_timeout(worker.time_left())
                    == Err(mpsc::RecvTimeoutError::Timeout)
                {
                    let Err(error) = worker.step() else {
                        has_failed = false;
                        continue;
                    };
                    worker.life.handle_failure(Instant::now());
                    if has_failed {
                        tracing::debug!(%error, "No alias is freed");
                    } else {
                        let error = format!("{error:#}");
                        tracing::warn!(%error, "Aliases cannot be used again");
                    }
                    has_failed = true;
                }
            })?;

        Ok(Self {
            freed,
            stop: Some(stop_tx),
            thread: Some(thread),
        })
    }

    /// The number of aliases that were freed, ever.
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
            tracing::error!("Thread that frees aliases panicked");
        }
    }
}

struct Worker {
    life: LifeCycle,
    aliases: Aliases,
    namespaces: Namespaces,
    freed: Arc<AtomicU64>,
}

impl Worker {
    fn time_left(&self) -> Duration {
        self.life
            .poll_timeout()
            .saturating_duration_since(Instant::now())
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let ever_used = self.aliases.ever_used()?;
        let mut actions = VecDeque::from(self.life.handle_timeout(ever_used, Instant::now()));
        while let Some(action) = actions.pop_front() {
            actions.extend(self.perform(action)?);
        }

        Ok(())
    }

    fn perform(&mut self, action: Action) -> anyhow::Result<Vec<Action>> {
        match action {
            Action::FindHolders(indices) => {
                let holders = self.holders(&indices)?;
                Ok(self.life.handle_holders(&holders, Instant::now()))
            }
            Action::ReadTable => {
                let table = self.aliases.used()?.into_iter().map(in_use).collect();
                Ok(self.life.handle_table(table, Instant::now()))
            }
            Action::Quarantine(index) => {
                if !self.aliases.quarantine(index)? {
                    return Ok(vec![self.life.handle_refused(index, Instant::now())]);
                }
                self.life.handle_quarantined(index, Instant::now());
                Ok(Vec::new())
            }
            Action::Free(index) => {
                if self.aliases.free(index)? {
                    self.freed.fetch_add(1, Ordering::Relaxed);
                }
                self.life.handle_released(index, Instant::now());
                Ok(Vec::new())
            }
            Action::Refresh { index, last_use } => {
                self.aliases.refresh(index, last_use);
                Ok(Vec::new())
            }
        }
    }

    fn holders(&self, indices: &[u32]) -> io::Result<Holders> {
        let addresses: Vec<Ipv4Addr> = indices
            .iter()
            .map(|index| self.aliases.address(*index))
            .collect();
        let Namespaces { host, inner } = &self.namespaces;
        let mut addresses_held = host.run(|| diag::addresses_in_use(&addresses, End::Peer))?;
        addresses_held.extend(inner.run(|| diag::addresses_in_use(&addresses, End::Own))?);
        let select = |matches: &dyn Fn(u32) -> bool| -> BTreeSet<u32> {
            indices.iter().copied().filter(|it| matches(*it)).collect()
        };

        Ok(Holders {
            held: select(&|index| addresses_held.contains(&self.aliases.address(index))),
            pinned: select(&|index| self.aliases.is_pinned(index)),
        })
    }
}

fn in_use(alias: UsedAlias) -> InUse {
    let UsedAlias {
        index,
        handed_out,
        is_pinned,
    } = alias;

    InUse {
        index,
        last_use: handed_out,
        is_pinned,
    }
}

//! What lives on of bundles: a session that keeps one of the descriptors it got keeps a network
//! namespace, or maps, when the bundle has gone. They are counted per user.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{links::Netlink, netns::NetNamespace, random};
use crate::{peer::MAX_CONNECTIONS_PER_UID, request_error::RequestError, wait::pause};

/// Bundles of a user with what remains of earlier ones. The kernel takes a namespace apart some
/// time after its last descriptor has gone, so there is room for more than sessions.
pub(crate) const MAX_PER_UID: usize = 2 * MAX_CONNECTIONS_PER_UID;
/// How long the kernel may take for that before somebody is refused.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// Ids by which the daemon's own network namespace knows the private ones; others count from 0.
const FIRST_ID: i32 = 0x4000_0000;
const IDS: u32 = 0x3000_0000;
const TRIES: usize = 8;

pub(crate) struct Living {
    entries: Mutex<Vec<Entry>>,
    next_id: AtomicI32,
}

struct Entry {
    number: i32,
    uid: u32,
    has_bundle: bool,
    namespace: Option<i32>,
    maps: Vec<u32>,
}

/// A bundle's place in the count, which what remains of it keeps.
pub(crate) struct Reservation {
    living: Arc<Living>,
    number: i32,
}

impl Living {
    pub(crate) fn new() -> Self {
        let start = (random() as u32 % IDS) as i32;

        Self {
            entries: Mutex::default(),
            next_id: AtomicI32::new(start),
        }
    }

    /// Takes a place, or says that there is none.
    pub(crate) fn take(self: &Arc<Self>, uid: u32) -> Result<Reservation, RequestError> {
        let end = Instant::now() + PATIENCE;
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        loop {
            {
                let mut entries = self.entries();
                forget_the_dead(&mut entries, uid)?;
                if entries.iter().filter(|entry| entry.uid == uid).count() < MAX_PER_UID {
                    entries.push(Entry {
                        number,
                        uid,
                        has_bundle: true,
                        namespace: None,
                        maps: Vec::new(),
                    });
                    break;
                }
            }
            if Instant::now() >= end {
                return Err(RequestError::unsupported(format!(
                    "programs of this user keep what earlier connections had: at most \
                     {MAX_PER_UID} private networks per user; end those programs"
                )));
            }
            pause(PAUSE);
        }

        Ok(Reservation {
            living: Arc::clone(self),
            number,
        })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Counts this namespace as long as it lives.
    pub(crate) fn note_namespace(&self, namespace: &NetNamespace) -> anyhow::Result<()> {
        let netlink = Netlink::open()?;
        let mut tried = Ok(());
        for _ in 0..TRIES {
            let next = self.living.next_id.fetch_add(1, Ordering::Relaxed);
            let id = FIRST_ID + (next as u32 % IDS) as i32;
            tried = netlink.set_namespace_id(namespace, id);
            if tried.is_ok() {
                self.entry(|entry| entry.namespace = Some(id));
                break;
            }
        }

        tried.context("cannot number a network namespace")
    }

    /// Counts these maps as long as they live.
    pub(crate) fn note_maps(&self, ids: &[u32]) {
        self.entry(|entry| entry.maps.extend(ids));
    }

    fn entry(&self, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.living.entries();
        if let Some(entry) = entries.iter_mut().find(|it| it.number == self.number) {
            change(entry);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.entry(|entry| entry.has_bundle = false);
    }
}

fn forget_the_dead(entries: &mut Vec<Entry>, uid: u32) -> anyhow::Result<()> {
    if !entries.iter().any(|it| it.uid == uid && !it.has_bundle) {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    entries.retain_mut(|entry| {
        if entry.uid != uid || entry.has_bundle {
            return true;
        }
        // What cannot be asked for counts as alive.
        entry.namespace = entry
            .namespace
            .filter(|id| netlink.knows_namespace(*id).unwrap_or(true));
        entry.maps.retain(|id| tp_ebpf_loader::is_map_alive(*id));

        entry.namespace.is_some() || !entry.maps.is_empty()
    });

    Ok(())
}

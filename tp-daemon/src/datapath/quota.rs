//! Counts bundles per user, dropped ones too while something of them lives: a session that keeps a
//! descriptor of its bundle keeps a network namespace or maps.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tp_process::sync;

use super::{links::Netlink, netns::NetNamespace, random};
use crate::{peer::MAX_CONNECTIONS_PER_UID, request_error::RequestError, wait::pause};

/// Bundles of a user, with the dropped ones that are still counted. The kernel destroys a namespace
/// some time after its last descriptor is closed, so there may be more of them than sessions.
pub(crate) const MAX_PER_UID: usize = 2 * MAX_CONNECTIONS_PER_UID;
/// For the kernel to do so before a session is refused.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Ids of private namespaces in the daemon's own network namespace; those of others count from 0.
const FIRST_ID: i32 = 0x4000_0000;
const ID_COUNT: u32 = 0x3000_0000;
const MAX_ID_ATTEMPTS: usize = 8;

pub(crate) struct Quota {
    bundles: Mutex<Vec<CountedBundle>>,
    next_id: AtomicI32,
}

struct CountedBundle {
    number: i32,
    uid: u32,
    is_dropped: bool,
    namespace: Option<i32>,
    maps: Vec<u32>,
}

/// A counted bundle. What remains of the bundle stays counted when this is dropped.
pub(crate) struct Reservation {
    quota: Arc<Quota>,
    number: i32,
}

impl Quota {
    pub(crate) fn new() -> Self {
        let start = (random() as u32 % ID_COUNT) as i32;

        Self {
            bundles: Mutex::default(),
            next_id: AtomicI32::new(start),
        }
    }

    /// Counts a new bundle of the user, or fails at the limit.
    pub(crate) fn reserve(self: &Arc<Self>, uid: u32) -> Result<Reservation, RequestError> {
        let end = Instant::now() + RELEASE_TIMEOUT;
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        loop {
            {
                let mut bundles = self.bundles();
                remove_dead(&mut bundles, uid)?;
                if bundles.iter().filter(|bundle| bundle.uid == uid).count() < MAX_PER_UID {
                    bundles.push(CountedBundle {
                        number,
                        uid,
                        is_dropped: false,
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
            pause(POLL_INTERVAL);
        }

        Ok(Reservation {
            quota: Arc::clone(self),
            number,
        })
    }

    fn bundles(&self) -> MutexGuard<'_, Vec<CountedBundle>> {
        sync::lock(&self.bundles)
    }
}

impl Reservation {
    /// Counts this namespace as long as it lives.
    pub(crate) fn note_namespace(&self, namespace: &NetNamespace) -> anyhow::Result<()> {
        let netlink = Netlink::open()?;
        let mut tried = Ok(());
        for _ in 0..MAX_ID_ATTEMPTS {
            let next = self.quota.next_id.fetch_add(1, Ordering::Relaxed);
            let id = FIRST_ID + (next as u32 % ID_COUNT) as i32;
            tried = netlink.set_namespace_id(namespace, id);
            if tried.is_ok() {
                self.update(|bundle| bundle.namespace = Some(id));
                break;
            }
        }

        tried.context("cannot number a network namespace")
    }

    /// Counts these maps as long as they live.
    pub(crate) fn note_maps(&self, ids: &[u32]) {
        self.update(|bundle| bundle.maps.extend(ids));
    }

    fn update(&self, change: impl FnOnce(&mut CountedBundle)) {
        let mut bundles = self.quota.bundles();
        if let Some(bundle) = bundles.iter_mut().find(|it| it.number == self.number) {
            change(bundle);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.update(|bundle| bundle.is_dropped = true);
    }
}

fn remove_dead(bundles: &mut Vec<CountedBundle>, uid: u32) -> anyhow::Result<()> {
    if !bundles.iter().any(|it| it.uid == uid && it.is_dropped) {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    bundles.retain_mut(|bundle| {
        if bundle.uid != uid || !bundle.is_dropped {
            return true;
        }
        // A namespace that cannot be looked up counts as alive.
        bundle.namespace = bundle
            .namespace
            .filter(|id| netlink.knows_namespace(*id).unwrap_or(true));
        bundle.maps.retain(|id| tp_ebpf_loader::is_map_alive(*id));

        bundle.namespace.is_some() || !bundle.maps.is_empty()
    });

    Ok(())
}

//! The room of a pod for connections, of which each port has its share: where nothing is taken from
//! connections at the workstation, the other ports go on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;
use tp_process::sync::lock;

/// Of one pod at a time, but for those of ports that came later.
const MAX_CONNECTIONS: usize = 1024;
/// Of a port, however many there are.
const MIN_SHARE: usize = 16;
/// For what may be probes, beyond the share of their port.
const RESERVE: usize = 16;

/// The connections of a pod, by port.
pub(crate) struct Places {
    taken: Mutex<Taken>,
    freed: Notify,
}

struct Taken {
    /// Of the redirected ports, and of others while they have connections.
    ports: BTreeMap<u16, usize>,
    redirected: Vec<u16>,
    share: usize,
}

/// A place of a port, until it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    port: u16,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self {
            taken: Mutex::new(Taken {
                ports: BTreeMap::new(),
                redirected: Vec::new(),
                share: MAX_CONNECTIONS,
            }),
            freed: Notify::new(),
        }
    }

    /// Divides the room among these ports.
    pub(crate) fn share(&self, ports: impl IntoIterator<Item = u16>) {
        let mut taken = lock(&self.taken);
        taken.redirected = ports.into_iter().collect();
        taken.share = (MAX_CONNECTIONS / taken.redirected.len().max(1)).max(MIN_SHARE);
        drop(taken);
        self.freed.notify_waiters();
    }

    /// A place, if the share of the port has one; for what may be a probe, also one beyond.
    pub(crate) fn take(self: &Arc<Self>, port: u16, may_be_probe: bool) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let most = match may_be_probe {
            true => taken.share + RESERVE,
            false => taken.share,
        };
        let of_port = taken.ports.entry(port).or_default();
        if *of_port >= most {
            return None;
        }
        *of_port += 1;

        Some(Place {
            places: Arc::clone(self),
            port,
        })
    }

    /// Resolves when some redirected port has room: while none has, connections wait in the listeners'
    /// queues.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if lock(&self.taken).has_room() {
                return;
            }
            freed.await;
        }
    }

    /// Returns whether connections to this port wait, or are reset.
    pub(crate) fn is_full(&self, port: u16) -> bool {
        let taken = lock(&self.taken);

        taken.of(port) >= taken.share
    }

    /// Returns whether that may soon be so, with probes among them.
    pub(crate) fn is_crowded(&self, port: u16) -> bool {
        let taken = lock(&self.taken);

        taken.of(port) > taken.share * 3 / 4
    }
}

impl Taken {
    fn of(&self, port: u16) -> usize {
        self.ports.get(&port).copied().unwrap_or_default()
    }

    fn has_room(&self) -> bool {
        let mut redirected = self.redirected.iter();

        self.redirected.is_empty() || redirected.any(|port| self.of(*port) < self.share)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(of_port) = taken.ports.get_mut(&self.port) {
            *of_port -= 1;
            if *of_port == 0 {
                taken.ports.remove(&self.port);
            }
        }
        drop(taken);
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn places(ports: &[u16]) -> Arc<Places> {
        let places = Arc::new(Places::new());
        places.share(ports.iter().copied());

        places
    }

    fn take_all(places: &Arc<Places>, port: u16) -> Vec<Place> {
        std::iter::from_fn(|| places.take(port, false)).collect()
    }

    #[test]
    fn a_port_takes_no_place_of_another() {
        let places = places(&[80, 81]);

        let of_one = take_all(&places, 80);

        assert_eq!(of_one.len(), MAX_CONNECTIONS / 2);
        assert!(places.is_full(80) && !places.is_full(81) && !places.is_crowded(81));
        assert!(places.room().now_or_never().is_some());
        assert_eq!(take_all(&places, 81).len(), MAX_CONNECTIONS / 2);
        // Alone again, it has it all.
        places.share([80]);
        assert_eq!(take_all(&places, 80).len(), MAX_CONNECTIONS / 2);
    }

    #[test]
    fn connections_wait_while_no_port_has_room() {
        let places = places(&[80]);
        let mut of_one = take_all(&places, 80);
        let mut room = Box::pin(places.room());
        assert!(room.as_mut().now_or_never().is_none());

        drop(of_one.pop());

        assert!(room.now_or_never().is_some());
    }

    #[test]
    fn what_may_be_a_probe_finds_a_place_beyond_the_share() {
        let places = places(&[80]);
        let _of_one = take_all(&places, 80);

        let probes: Vec<_> = std::iter::from_fn(|| places.take(80, true)).collect();

        assert_eq!(probes.len(), RESERVE);
    }

    #[test]
    fn many_ports_have_a_share_each() {
        let places = places(&(1..=100).collect::<Vec<_>>());

        assert_eq!(take_all(&places, 7).len(), MIN_SHARE);
        assert!(places.room().now_or_never().is_some());
    }
}

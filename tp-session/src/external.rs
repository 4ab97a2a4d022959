//! Addresses outside the cluster's networks that names of the cluster lead to. They are steered while in
//! use, so that the manager decides who may connect there.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use tp_core::{
    dns,
    outside::{self, Outside},
    steering::Local,
};
use tp_process::sync;

/// The most addresses of one answer that are steered.
const MAX_PER_ANSWER: usize = 16;
/// An answer waits for the root daemon this long, and then goes out all the same.
const STEER_TIMEOUT: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

pub(super) struct ExternalAddresses {
    /// This machine's own networks.
    local: watch::Receiver<Local>,
    /// The name servers in use.
    servers: watch::Receiver<Vec<SocketAddrV4>>,
    known: Mutex<Outside>,
    /// Addresses that the root daemon is to steer.
    wanted: watch::Sender<Vec<Ipv4Addr>>,
    /// Addresses that the root daemon steers.
    steered: watch::Sender<Vec<Ipv4Addr>>,
}

impl ExternalAddresses {
    pub(super) fn new(
        local: watch::Receiver<Local>,
        servers: watch::Receiver<Vec<SocketAddrV4>>,
    ) -> Self {
        Self {
            local,
            servers,
            known: Mutex::default(),
            wanted: watch::Sender::default(),
            steered: watch::Sender::default(),
        }
    }

    /// Steers the addresses of `answer` before it goes out, so that a program may connect at once.
    pub(super) async fn learn(&self, answer: &[u8], is_cluster: impl Fn(Ipv4Addr) -> bool) {
        let mut found = dns::addresses(answer, MAX_PER_ANSWER);
        found.retain(|it| !is_cluster(*it));
        if !found.is_empty() {
            self.steer(found).await;
        }
    }

    async fn steer(&self, mut found: Vec<Ipv4Addr>) {
        found.retain(|address| {
            let is_server = |server: &SocketAddrV4| server.ip() == address;
            outside::is_elsewhere(*address)
                && !self.local.borrow().has(*address)
                && !self.servers.borrow().iter().any(is_server)
        });
        let now = Instant::now();
        let mut is_new = false;
        for address in &found {
            is_new |= self.known().learn(*address, now);
        }
        if is_new {
            self.publish();
        }
        let mut steered = self.steered.subscribe();
        let all = steered.wait_for(|steered| found.iter().all(|it| steered.contains(it)));
        if timeout(STEER_TIMEOUT, all).await.is_err() {
            tracing::info!(?found, "Root daemon does not steer what a name leads to");
        }
    }

    /// Notes a connection to `address`.
    pub(super) fn used(&self, address: Ipv4Addr) {
        self.known().renew(address, Instant::now());
    }

    /// Forgets what is not in use, until aborted.
    pub(super) async fn forget(&self) {
        let mut sweep = interval(SWEEP_INTERVAL);
        loop {
            sweep.tick().await;
            let has_changed = self.known().forget(Instant::now());
            if has_changed {
                self.publish();
            }
        }
    }

    /// The addresses to steer, with every change.
    pub(super) fn wanted(&self) -> watch::Receiver<Vec<Ipv4Addr>> {
        self.wanted.subscribe()
    }

    pub(super) fn set_steered(&self, addresses: Vec<Ipv4Addr>) {
        self.steered.send_replace(addresses);
    }

    pub(super) fn steered(&self) -> Vec<Ipv4Addr> {
        self.steered.borrow().clone()
    }

    fn publish(&self) {
        let known = self.known();
        // Under the lock, so that the newest list comes last.
        self.wanted.send_replace(known.addresses());
    }

    fn known(&self) -> MutexGuard<'_, Outside> {
        sync::lock(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use tp_core::{dns::Zone, steering::Link};

    use super::*;
    use crate::shared::Shared;

    const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn shared() -> Shared {
        let shared = Shared::new(Zone::new("cluster.local", "shop", []));
        let server = SocketAddrV4::new([192, 0, 2, 53].into(), 53);
        shared.name_servers.send_replace(vec![server]);
        shared
    }

    #[tokio::test]
    async fn an_answer_waits_until_what_it_leads_to_is_steered() {
        let shared = shared();
        let mut wanted = shared.external.wanted();
        let root = async {
            let asked = timeout(STEER_TIMEOUT, wanted.changed()).await;
            asked.unwrap().unwrap();
            let addresses = wanted.borrow().clone();
            shared.external.set_steered(addresses);
        };

        tokio::join!(shared.external.steer(vec![EXTERNAL]), root);

        assert_eq!(shared.external.steered(), [EXTERNAL]);
    }

    #[tokio::test]
    async fn what_is_this_machines_or_its_name_servers_is_not_steered() {
        let shared = shared();
        let wanted = shared.external.wanted();
        let found = ["127.0.0.1", "169.254.169.254", "192.0.2.53", "198.51.100.7"];
        let found = found.map(|it| it.parse().unwrap()).to_vec();
        let local = Local {
            connected: vec![Link {
                network: "198.51.100.0/24".parse().unwrap(),
                interface: "e0".to_owned(),
            }],
            ..Local::default()
        };
        shared.local.send_replace(local.clone());

        shared.external.steer(found).await;
        assert!(wanted.borrow().is_empty());

        let shared = self::shared();
        shared.local.send_replace(local);
        shared.external.steer(vec![EXTERNAL]).await;
        assert_eq!(*shared.external.wanted().borrow(), [EXTERNAL]);
    }
}

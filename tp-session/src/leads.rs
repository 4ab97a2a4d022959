//! Names of the cluster that lead outside its networks: what they lead to is steered while it is in
//! use, so that the manager decides who may connect there.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Mutex, MutexGuard, PoisonError},
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

/// Of one answer; further ones are not steered.
const MOST_OF_ONE: usize = 16;
/// An answer waits for the root daemon, and goes out when that does not answer either.
const STEER_LIMIT: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_secs(15);

pub(super) struct Leads {
    /// This machine's own networks.
    local: watch::Receiver<Local>,
    /// The name servers in use.
    servers: watch::Receiver<Vec<SocketAddrV4>>,
    known: Mutex<Outside>,
    /// For the root daemon.
    wanted: watch::Sender<Vec<Ipv4Addr>>,
    /// What the root daemon has.
    steered: watch::Sender<Vec<Ipv4Addr>>,
}

impl Leads {
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

    /// Before `answer` goes out, so that a program that connects at once is steered already.
    pub(super) async fn learn(&self, answer: &[u8], is_cluster: impl Fn(Ipv4Addr) -> bool) {
        let mut found = dns::addresses(answer, MOST_OF_ONE);
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
        if timeout(STEER_LIMIT, all).await.is_err() {
            tracing::info!(?found, "Root daemon does not steer what a name leads to");
        }
    }

    /// A connection goes there.
    pub(super) fn used(&self, address: Ipv4Addr) {
        self.known().renew(address, Instant::now());
    }

    /// Forgets what is not in use, until aborted.
    pub(super) async fn forget(&self) {
        let mut sweep = interval(SWEEP);
        loop {
            sweep.tick().await;
            let has_changed = self.known().forget(Instant::now());
            if has_changed {
                self.publish();
            }
        }
    }

    /// Every change of what is to be steered.
    pub(super) fn wanted(&self) -> watch::Receiver<Vec<Ipv4Addr>> {
        self.wanted.subscribe()
    }

    pub(super) fn is_steered(&self, addresses: Vec<Ipv4Addr>) {
        self.steered.send_replace(addresses);
    }

    pub(super) fn steered(&self) -> Vec<Ipv4Addr> {
        self.steered.borrow().clone()
    }

    fn publish(&self) {
        let known = self.known();
        // Under the lock: the newest comes last.
        self.wanted.send_replace(known.addresses());
    }

    fn known(&self) -> MutexGuard<'_, Outside> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tp_core::{dns::Zone, steering::Link};

    use super::*;
    use crate::shared::Shared;

    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn shared() -> Shared {
        let shared = Shared::new(Zone::new("cluster.local", "shop", []));
        let server = SocketAddrV4::new([192, 0, 2, 53].into(), 53);
        shared.name_servers.send_replace(vec![server]);
        shared
    }

    #[tokio::test]
    async fn an_answer_waits_until_what_it_leads_to_is_steered() {
        let shared = shared();
        let mut wanted = shared.leads.wanted();
        let root = async {
            let asked = timeout(STEER_LIMIT, wanted.changed()).await;
            asked.unwrap().unwrap();
            let addresses = wanted.borrow().clone();
            shared.leads.is_steered(addresses);
        };

        tokio::join!(shared.leads.steer(vec![ELSEWHERE]), root);

        assert_eq!(shared.leads.steered(), [ELSEWHERE]);
    }

    #[tokio::test]
    async fn what_is_this_machines_or_its_name_servers_is_not_steered() {
        let shared = shared();
        let wanted = shared.leads.wanted();
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

        shared.leads.steer(found).await;
        assert!(wanted.borrow().is_empty());

        let shared = self::shared();
        shared.local.send_replace(local);
        shared.leads.steer(vec![ELSEWHERE]).await;
        assert_eq!(*shared.leads.wanted().borrow(), [ELSEWHERE]);
    }
}

//! The state that the tasks of one connection share.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tp_core::{dns::Zone, steering::Local, verdict::Verdict};
use tp_process::sync::{lock, read, write};
use tp_proto::{
    local::Count,
    table,
    tunnel::{manager_client::ManagerClient, table_event::Event},
};
use tp_transport::{SessionRef, SpliceCounters, Tunnel};

use super::external::ExternalAddresses;

/// A tunnel that is up.
#[derive(Clone)]
pub struct ActiveTunnel {
    pub tunnel: Tunnel,
    /// Every tunnel has one of its own.
    pub session: SessionRef,
    pub manager: ManagerClient<Channel>,
    /// The pod of the manager at its other end.
    pub replica: String,
    pub version: String,
}

/// The state that the tasks of one connection share.
pub struct Shared {
    zone: RwLock<Zone>,
    /// The tunnel of flows and requests; without one the cluster is unreachable.
    pub up: watch::Sender<Option<ActiveTunnel>>,
    /// The reason why there is no tunnel, or will soon be none; empty otherwise.
    pub(super) reason: watch::Sender<String>,
    /// The cluster's service and pod networks.
    pub(super) networks: watch::Sender<Vec<IpNet>>,
    /// This machine's own networks.
    pub(super) local: watch::Sender<Local>,
    /// The servers whose queries are answered; the root daemon is told of them separately.
    pub name_servers: watch::Sender<Vec<SocketAddrV4>>,
    pub(super) external: ExternalAddresses,
    pub(super) counters: Counters,
    /// Cancelled when somebody has deleted the Session object to end this connection.
    pub(super) deleted: CancellationToken,
    /// The cluster does not tell its service networks.
    services_are_covered: AtomicBool,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) splice: SpliceCounters,
    pub(super) flows_open: AtomicU64,
    pub(super) flows_total: AtomicU64,
    pub(super) held: AtomicU64,
    /// Refusals that were written again; most of them reach no socket.
    pub(super) repeated: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) asked: AtomicU64,
    pub(super) passed_on: AtomicU64,
    pub(super) failed: AtomicU64,
    dials: Mutex<BTreeMap<Verdict, u64>>,
    last_failed_dial: Mutex<String>,
}

impl Counters {
    pub(super) fn dialled(&self, verdict: Verdict) {
        *lock(&self.dials).entry(verdict).or_default() += 1;
    }

    pub(super) fn dial_failed(&self, target: SocketAddrV4, reason: &str) {
        *lock(&self.last_failed_dial) = format!("{target}: {reason}");
    }

    /// The target of the last failed dial and the reason; empty if none failed.
    pub(super) fn last_failed_dial(&self) -> String {
        lock(&self.last_failed_dial).clone()
    }

    pub(super) fn dials(&self) -> Vec<Count> {
        lock(&self.dials)
            .iter()
            .map(|(verdict, count)| Count {
                reason: verdict.name().to_owned(),
                count: *count,
            })
            .collect()
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts one flow for as long as it lives.
pub(super) struct FlowCount<'a>(&'a Counters);

impl<'a> FlowCount<'a> {
    pub(super) fn new(counters: &'a Counters) -> Self {
        counters.flows_open.fetch_add(1, Ordering::Relaxed);
        counters.flows_total.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for FlowCount<'_> {
    fn drop(&mut self) {
        self.0.flows_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// The state without a tunnel yet, with the names of `zone`.
    pub fn new(zone: Zone) -> Self {
        let local = watch::Sender::default();
        let name_servers = watch::Sender::new(Vec::new());
        let external = ExternalAddresses::new(local.subscribe(), name_servers.subscribe());

        Self {
            zone: RwLock::new(zone),
            up: watch::Sender::new(None),
            reason: watch::Sender::new(String::new()),
            networks: watch::Sender::new(Vec::new()),
            local,
            name_servers,
            external,
            counters: Counters::default(),
            deleted: CancellationToken::new(),
            services_are_covered: AtomicBool::new(false),
        }
    }

    /// Sentences for the user about the table.
    pub(super) fn notices(&self) -> Vec<String> {
        let is_covered = self.services_are_covered.load(Ordering::Relaxed);
        let covered = is_covered.then(|| {
            "the cluster does not tell its service networks: services are steered by the addresses \
             that are known"
                .to_owned()
        });
        let ipv6_only = self.is_ipv6_only().then(|| {
            "the cluster has IPv6 networks only, and IPv6 is not steered yet: its services and pods \
             are not reached"
                .to_owned()
        });

        covered.into_iter().chain(ipv6_only).collect()
    }

    pub(super) fn is_ipv6_only(&self) -> bool {
        let networks = self.networks.borrow();

        !networks.is_empty() && networks.iter().all(|it| it.addr().is_ipv6())
    }

    /// The namespaces that the user may reach.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.zone(|zone| zone.namespaces().map(str::to_owned).collect())
    }

    pub(super) fn zone<T>(&self, look: impl FnOnce(&Zone) -> T) -> T {
        look(&read(&self.zone))
    }

    fn change(&self, apply: impl FnOnce(&mut Zone)) {
        apply(&mut write(&self.zone));
    }

    pub(super) fn set_domain(&self, domain: &str) {
        self.change(|zone| zone.set_domain(domain));
    }

    /// See [`Zone::lend`].
    pub(super) fn lend(&self, services: BTreeMap<String, String>) {
        self.change(|zone| zone.lend(services));
    }

    pub(super) fn up(&self) -> Option<ActiveTunnel> {
        self.up.borrow().clone()
    }

    /// Applies an event of the manager's table.
    pub fn apply(&self, event: Event) {
        if let Event::Snapshot(frame) | Event::Replaced(frame) = &event {
            let covered = frame.services_are_covered;
            self.services_are_covered.store(covered, Ordering::Relaxed);
        }
        self.change(|zone| {
            table::apply(zone, event);
            self.networks.send_if_modified(|known| {
                let is_new = known != zone.networks();
                if is_new {
                    *known = zone.networks().to_vec();
                }
                is_new
            });
        });
    }
}

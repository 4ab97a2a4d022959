//! One connection from beginning to end: made as one, dropped as one.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tp_core::{dns::Zone, sessions::ToldNetworks, steering::Wishes};
use tp_process::sync::lock;
use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
    local::{ConnectRequest, Transport},
};
use tp_root_api::{Counters, Datapath, DropReason, Overlap, Reply, Request};
use tp_transport::{CloseCode, PathChoice};

use super::{
    cluster::{Cluster, Destination},
    dns::servers,
    exempt::ExemptHosts,
    firewall,
    intercepts::OwnIntercepts,
    local::{self, Observer},
    mapped,
    opened_datapath::OpenedDatapath,
    overlaps,
    progress::Progress,
    renewal::Login,
    root_link::RootLink,
    shared::Shared,
    steer::{self, Follower, Steered},
    tasks::Tasks,
    uplink::{Established, Uplink},
};

/// Bounds each step of taking the connection down.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A status without counters is better than none.
const COUNTERS_TIMEOUT: Duration = Duration::from_secs(2);
/// The domain until the manager names another one.
const CLUSTER_DOMAIN: &str = "cluster.local";

pub(super) struct Connection {
    pub(super) destination: Destination,
    pub(super) user: UserInfo,
    pub(super) request: ConnectRequest,
    pub(super) shared: Arc<Shared>,
    pub(super) datapath: Datapath,
    pub(super) daemon_version: String,
    pub(super) daemon_pid: u32,
    /// The root daemon ends with this session.
    pub(super) root_daemon_ends: bool,
    /// The cgroup to which steering is limited; empty if it is not.
    pub(super) cgroup: String,
    pub(super) since: Timestamp,
    root: Arc<RootLink>,
    uplink: Arc<Uplink>,
    pub(super) intercepts: Arc<OwnIntercepts>,
    stop: CancellationToken,
    tasks: Tasks,
    pub(super) steered: watch::Sender<Steered>,
    /// A firewall of this machine drops steered packets.
    is_blocked: AtomicBool,
    /// The number of our own probe packets that count as dropped on the data path's interface.
    probe_packets: AtomicU64,
    /// What other sessions of the user have of this one's networks and name servers.
    overlaps: Mutex<Vec<Overlap>>,
}

/// The inputs of steering besides the cluster's networks.
struct SteeringInputs {
    wishes: Wishes,
    exempt: ExemptHosts,
    /// The exempt addresses at the beginning.
    found: BTreeSet<IpNet>,
}

impl Connection {
    /// Connects, or leaves nothing behind. Stops early when it is `unwanted`.
    pub(super) async fn open(
        request: ConnectRequest,
        progress: &Progress,
        unwanted: &CancellationToken,
    ) -> Result<Arc<Self>, Fault> {
        let choice = match request.transport() {
            Transport::Auto => PathChoice::Auto,
            Transport::Udp => PathChoice::UdpOnly,
            Transport::Portforward => PathChoice::StreamOnly,
        };
        let wishes = steer::wishes(&request)?;
        // Before any step is reported: from here on a root daemon that ends with its last session waits
        // for this one.
        let root = RootLink::connect().await?;
        root.check_version()?;
        // Its credential plugin may ask the user.
        progress.step("reading the kubeconfig".to_owned());
        let cluster = Arc::new(Cluster::load(&request).await?);
        let destination = cluster.destination.clone();
        let mut exempt = ExemptHosts::of(&[&destination.server, &destination.proxy]);
        check_wanted(unwanted)?;
        progress.step(format!("logging in to {}", destination.server));
        let (user, namespace, replicas) = tokio::join!(
            cluster.user(),
            cluster.check_namespace(),
            cluster.replicas()
        );
        // A refused login says more than what was refused because of it, whichever came first.
        let user = user?;
        namespace?;
        let replicas = replicas?;
        check_wanted(unwanted)?;
        let mapped = request.mapped_namespaces.iter().cloned();
        let shared = Arc::new(Shared::new(Zone::new(
            CLUSTER_DOMAIN,
            &destination.namespace,
            mapped,
        )));
        let stop = CancellationToken::new();
        let login = Arc::new(Login::new(request.clone(), &user.username, cluster));
        let intercepts = OwnIntercepts::new(Arc::clone(&login), Arc::clone(&shared), stop.clone());
        let uplink = Uplink::new(login, choice, Arc::clone(&shared), stop.clone());
        let uplink = Arc::new(uplink);
        let (established, opened, found) = tokio::join!(
            uplink.establish(&user, &replicas, None, progress),
            OpenedDatapath::open(root, &request.cgroup, &wishes.also),
            exempt.resolve()
        );
        let opened = match (&established, opened) {
            (Ok(_), Ok(_)) if unwanted.is_cancelled() => Err(attempt_ended()),
            (Ok(_), Ok(opened)) => {
                let networks = shared.networks.borrow().clone();
                opened.reopen_if_needed(&request, &wishes, &networks).await
            }
            (_, opened) => opened,
        };
        let (established, opened) = match (established, opened) {
            (Ok(established), Ok(opened)) => (established, opened),
            (Ok(established), Err(fault)) => {
                uplink.discard(established).await;
                return Err(fault);
            }
            (Err(fault), _) => {
                uplink.delete_all(&BTreeSet::new()).await;
                return Err(fault);
            }
        };
        let tasks = Tasks::new(stop.clone());
        let this = Self {
            destination,
            user,
            request,
            shared,
            datapath: opened.handover.datapath().clone(),
            daemon_version: opened.root.version.clone(),
            daemon_pid: opened.root.pid,
            root_daemon_ends: opened.root.ends_with_last_session,
            cgroup: opened.cgroup.clone(),
            since: Timestamp::now(),
            root: Arc::clone(&opened.root),
            uplink,
            intercepts: Arc::new(intercepts),
            stop,
            tasks,
            steered: watch::Sender::default(),
            is_blocked: AtomicBool::new(false),
            overlaps: Mutex::default(),
            probe_packets: AtomicU64::new(0),
        };
        let inputs = SteeringInputs {
            wishes,
            exempt,
            found,
        };
        if let Err(fault) = this.start(inputs, established, opened).await {
            this.close().await;
            return Err(fault);
        }
        this.look_for_firewall().await;
        this.look_for_overlaps().await;

        Ok(Arc::new(this))
    }

    async fn start(
        &self,
        inputs: SteeringInputs,
        established: Established,
        opened: OpenedDatapath,
    ) -> Result<(), Fault> {
        let broken = |error: std::io::Error| {
            Fault::new(
                FaultKind::Failed,
                format!("the data path cannot be used: {error}"),
            )
        };
        let OpenedDatapath { handover, .. } = opened;
        let datapath = handover.datapath();
        let mut observer = Observer::open(datapath.host_address).map_err(broken)?;
        let datapath = local::of_datapath(datapath);
        self.shared.name_servers.send_replace(servers::current());
        let local = self.shared.local.clone();
        local.send_replace(observer.read().await?);
        let exempt = watch::Sender::new(inputs.found);
        let mut follower = Follower {
            told: ToldNetworks::default(),
            root: Arc::clone(&self.root),
            wishes: inputs.wishes,
            datapath,
            networks: self.shared.networks.subscribe(),
            name_servers: self.shared.name_servers.subscribe(),
            local: local.subscribe(),
            exempt: exempt.subscribe(),
            external: self.shared.external.wanted(),
            shared: Arc::clone(&self.shared),
            steered: self.steered.clone(),
            retry: steer::RETRY_INTERVAL,
        };
        // Before the connection is reported, so that its path is, too.
        self.shared.up.send_replace(Some(established.up()));
        let tasks = &self.tasks;
        let calls = self.intercepts.local_calls();
        handover
            .serve_with(&self.shared, tasks, calls)
            .map_err(broken)?;
        tasks.spawn("the uplink", Arc::clone(&self.uplink).run(established));
        let servers = servers::watch(self.shared.name_servers.clone());
        tasks.spawn("the watch over resolv.conf", servers);
        let intercepts = &self.intercepts;
        let shows_clients = self.datapath.shows_clients;
        tasks.spawn(
            "the acceptance of intercepted connections",
            intercepts.accept(shows_clients.then(|| Arc::clone(&self.root))),
        );
        tasks.spawn("the service of intercepts", Arc::clone(intercepts).follow());
        let ports = Arc::clone(intercepts).watch_local_ports();
        tasks.spawn("the watch over local ports", ports);
        let shared = Arc::clone(&self.shared);
        let forget = async move { shared.external.forget().await };
        self.tasks
            .spawn("the list of addresses that names lead to", forget);
        // The hooks begin to steer only when everything behind them runs.
        follower.begin().await?;
        tasks.spawn("the link to the root daemon", follower.run());
        tasks.spawn(
            "the watch over this machine's networks",
            observer.watch(local),
        );
        let exempt = inputs.exempt.watch(exempt);
        tasks.spawn("the watch over the API server's addresses", exempt);

        Ok(())
    }

    /// Resolves with a sentence for the user when the connection is lost: the root daemon has gone, the
    /// Session object was deleted, or one of the tasks has ended.
    pub(super) async fn lost(&self) -> String {
        tokio::select! {
            biased;
            () = self.root.gone().cancelled() => {
                "the root daemon has ended: run `tp connect` again".to_owned()
            }
            () = self.shared.deleted.cancelled() => {
                "somebody has ended this session in the cluster, by deleting its Session object: run \
                 `tp connect` again".to_owned()
            }
            reason = self.tasks.lost() => reason,
        }
    }

    /// Returns whether [`Self::lost`] would resolve at once.
    pub(super) fn is_lost(&self) -> bool {
        self.root.gone().is_cancelled()
            || self.shared.deleted.is_cancelled()
            || self.tasks.are_lost()
    }

    /// The API server, with the newest login.
    pub(super) fn cluster(&self) -> Arc<Cluster> {
        self.uplink.login.cluster()
    }

    /// Sentences for the user.
    pub(super) fn notices(&self) -> Vec<String> {
        let is_blocked = self.is_blocked.load(Ordering::Relaxed);
        let firewall = is_blocked.then(|| firewall::NOTICE.to_owned());
        let steered = self.steered.borrow().notices();
        let wanted = &self.request.mapped_namespaces;
        let mapped = mapped::notices(
            wanted,
            &self.destination.namespace,
            &self.shared.namespaces(),
        );

        steered
            .into_iter()
            .chain(self.shared.notices())
            .chain(mapped)
            .chain(firewall)
            .chain(overlaps::notices(&lock(&self.overlaps)))
            .collect()
    }

    /// Asks what other sessions have of this one; [`Self::notices`] tells of it from here on.
    pub(super) async fn look_for_overlaps(&self) {
        let answer = timeout(COUNTERS_TIMEOUT, self.root.call(Request::Overlaps, None)).await;
        // Without an answer, the last one stays.
        if let Ok(Ok((Reply::Overlaps { overlaps }, _))) = answer {
            *lock(&self.overlaps) = overlaps;
        }
    }

    /// Probes for a firewall that drops steered packets; [`Self::notices`] tells of it from here on.
    pub(super) async fn look_for_firewall(&self) {
        let alias = firewall::unused_alias(&self.datapath);
        // Without a result, the last one stays.
        if let Some(passes) = firewall::lets_pass(alias, || self.reached()).await {
            self.is_blocked.store(!passes, Ordering::Relaxed);
            self.probe_packets
                .fetch_add(u64::from(passes), Ordering::Relaxed);
        }
    }

    async fn reached(&self) -> Option<u64> {
        let counters = self.counters_of_root().await?;

        counters.dropped(DropReason::ForeignSocket)
    }

    /// The root daemon's counters, without the packets of [`Self::look_for_firewall`] and without
    /// repeated refusals.
    pub(super) async fn counters(&self) -> Counters {
        let mut counters = self.counters_of_root().await.unwrap_or_default();
        for (reason, count) in &mut counters.drops {
            let own = match DropReason::from_name(reason) {
                Some(DropReason::ForeignSocket) => &self.probe_packets,
                Some(DropReason::Unasked) => &self.shared.counters.repeated,
                None => continue,
            };
            *count = count.saturating_sub(own.load(Ordering::Relaxed));
        }

        counters
    }

    async fn counters_of_root(&self) -> Option<Counters> {
        match timeout(COUNTERS_TIMEOUT, self.root.call(Request::Counters, None)).await {
            Ok(Ok((Reply::Counters(counters), _))) => Some(counters),
            _ => None,
        }
    }

    /// Takes everything down and waits until the machine is as before.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        let up = self.shared.up();
        let hooks = async {
            if timeout(CLOSE_TIMEOUT, self.root.call(Request::Close, None))
                .await
                .is_err()
            {
                tracing::info!("Root daemon did not confirm the end of the data path");
            }
        };
        let tunnel = async {
            // Before the manager sees the session go: new connections reach the pods again at once.
            self.intercepts.end_all().await;
            if let Some(up) = &up {
                up.tunnel.close(CloseCode::Quit).await;
            }
        };
        let none = BTreeSet::new();
        let sessions = self.uplink.delete_all(&none);
        let (_, unanswered, ()) = tokio::join!(hooks, sessions, async {
            tunnel.await;
            if timeout(CLOSE_TIMEOUT, self.tasks.end()).await.is_err() {
                tracing::info!("Tasks did not end in time");
            }
        });
        // An object that was being created when its task ended.
        self.uplink.delete_all(&unanswered).await;
    }
}

fn check_wanted(unwanted: &CancellationToken) -> Result<(), Fault> {
    if unwanted.is_cancelled() {
        return Err(attempt_ended());
    }

    Ok(())
}

/// The fault for the participants of an attempt that was given up.
pub(super) fn attempt_ended() -> Fault {
    Fault::new(
        FaultKind::Failed,
        "this attempt to connect was ended, by `tp quit` or because the session was told to end: \
         run `tp connect` again",
    )
}

//! One connection from beginning to end: made as one, dropped as one.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tp_core::dns::Zone;
use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
    local::{ConnectRequest, Transport},
    root::{Bundle, Counters, OpenBundle, Reply, Request, Scope, Steer},
};
use tp_transport::{CloseCode, PathChoice, SessionRef};

use super::{
    cluster::{Cluster, Place},
    datapath::Descriptors,
    dns::servers,
    progress::Progress,
    renewal::Login,
    root_link::{self, RootLink},
    shared::Shared,
    tasks::Tasks,
    uplink::{Established, Uplink},
};

/// For each step of taking the connection down.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Where a manager has no other domain.
const CLUSTER_DOMAIN: &str = "cluster.local";

pub(super) struct Connection {
    pub(super) place: Place,
    pub(super) user: UserInfo,
    pub(super) request: ConnectRequest,
    pub(super) shared: Arc<Shared>,
    pub(super) bundle: Bundle,
    pub(super) daemon_version: String,
    pub(super) daemon_pid: u32,
    /// The root daemon ends with this session.
    pub(super) root_daemon_ends: bool,
    pub(super) since: Timestamp,
    root: Arc<RootLink>,
    login: Arc<Login>,
    first_session: SessionRef,
    stop: CancellationToken,
    tasks: Tasks,
}

/// What the root daemon hands over.
struct Opened {
    root: Arc<RootLink>,
    descriptors: Descriptors,
}

impl Connection {
    /// Connects, or leaves nothing behind.
    pub(super) async fn open(
        request: ConnectRequest,
        progress: &Progress,
    ) -> Result<Arc<Self>, Fault> {
        let choice = match request.transport() {
            Transport::Auto => PathChoice::Auto,
            Transport::Quic => PathChoice::UdpOnly,
            Transport::Portforward => PathChoice::StreamOnly,
        };
        let mut steer = Steering::parse(&request)?;
        let cluster = Arc::new(Cluster::load(&request).await?);
        let place = cluster.place.clone();
        steer.spare(&place.server);
        // First, and before anybody hears of a step: from then on a root daemon that ends with its
        // last session waits for this one.
        let root = RootLink::connect().await?;
        tp_proto::version::check("the root daemon", &root.version)?;
        progress.step(format!("logging in to {}", place.server));
        let (user, (), replicas) = tokio::try_join!(
            cluster.user(),
            cluster.check_namespace(),
            cluster.replicas()
        )?;
        let mapped = request.mapped_namespaces.iter().cloned();
        let shared = Arc::new(Shared::new(Zone::new(
            CLUSTER_DOMAIN,
            &place.namespace,
            mapped,
        )));
        let stop = CancellationToken::new();
        let login = Arc::new(Login::new(request.clone(), &user.username, cluster));
        let uplink = Arc::new(Uplink {
            login: Arc::clone(&login),
            choice,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
        });
        let (established, opened) = tokio::join!(
            uplink.establish(&user, &replicas, progress),
            open_bundle(root, &request)
        );
        let (established, opened) = match (established, opened) {
            (Ok(established), Ok(opened)) => (established, opened),
            (Ok(established), Err(fault)) => {
                uplink.discard(established).await;
                return Err(fault);
            }
            (Err(fault), _) => return Err(fault),
        };
        let first_session = established.session().clone();
        let tasks = Tasks::new(stop.clone());
        let this = Self {
            place,
            user,
            request,
            shared,
            bundle: opened.descriptors.bundle().clone(),
            daemon_version: opened.root.version.clone(),
            daemon_pid: opened.root.pid,
            root_daemon_ends: opened.root.ends,
            since: Timestamp::now(),
            root: Arc::clone(&opened.root),
            login,
            first_session,
            stop,
            tasks,
        };
        if let Err(fault) = this.start(steer, uplink, established, opened).await {
            this.close().await;
            return Err(fault);
        }

        Ok(Arc::new(this))
    }

    async fn start(
        &self,
        steering: Steering,
        uplink: Arc<Uplink>,
        established: Established,
        opened: Opened,
    ) -> Result<(), Fault> {
        self.shared.name_servers.send_replace(servers::current());
        opened
            .descriptors
            .serve(&self.shared, &self.tasks)
            .map_err(|error| {
                Fault::new(
                    FaultKind::Failed,
                    format!("the data path cannot be used: {error}"),
                )
            })?;
        let servers = servers::watch(self.shared.name_servers.clone());
        self.tasks.spawn("the uplink", uplink.run(established));
        self.tasks.spawn("the watch over resolv.conf", servers);
        let shared = Arc::clone(&self.shared);
        let forget = async move { shared.leads.forget().await };
        self.tasks
            .spawn("the list of addresses that names lead to", forget);
        // The hooks begin to steer only when everything behind them runs.
        self.steer(&steering).await?;
        self.name_servers().await?;
        let (root, shared) = (Arc::clone(&self.root), Arc::clone(&self.shared));
        let follow = async move { follow(&root, &shared, &steering).await };
        self.tasks.spawn("the link to the root daemon", follow);

        Ok(())
    }

    async fn steer(&self, steering: &Steering) -> Result<(), Fault> {
        let networks = self.shared.networks.borrow().clone();
        self.root
            .call(Request::Steer(steering.with(&networks, &[])), None)
            .await
            .map(drop)
    }

    async fn name_servers(&self) -> Result<(), Fault> {
        let servers = self.shared.name_servers.borrow().clone();
        let servers = servers.into_iter().map(Into::into).collect();
        self.root
            .call(Request::NameServers { servers }, None)
            .await
            .map(drop)
    }

    /// Resolves with a sentence for the user when the connection can go on no longer: the root
    /// daemon has gone, and nothing is steered any more, or one of the tasks has ended.
    pub(super) async fn lost(&self) -> String {
        tokio::select! {
            biased;
            () = self.root.gone().cancelled() => {
                "the root daemon has ended: run `tp connect` again".to_owned()
            }
            reason = self.tasks.lost() => reason,
        }
    }

    /// Whether [`Self::lost`] has something to say.
    pub(super) fn is_lost(&self) -> bool {
        self.root.gone().is_cancelled() || self.tasks.are_lost()
    }

    pub(super) async fn counters(&self) -> Counters {
        match self.root.call(Request::Counters, None).await {
            Ok((Reply::Counters(counters), _)) => counters,
            _ => Counters::default(),
        }
    }

    /// Takes everything down and waits until the machine is as before.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        let up = self.shared.up();
        let hooks = async {
            if timeout(CLOSE_LIMIT, self.root.call(Request::Close, None))
                .await
                .is_err()
            {
                tracing::info!("Root daemon did not confirm the end of the bundle");
            }
        };
        let tunnel = async {
            if let Some(up) = &up {
                up.tunnel.close(CloseCode::Quit).await;
            }
        };
        tokio::join!(hooks, self.delete_sessions(), async {
            tunnel.await;
            if timeout(CLOSE_LIMIT, self.tasks.end()).await.is_err() {
                tracing::info!("Tasks did not end in time");
            }
        });
    }

    async fn delete_sessions(&self) {
        let current = self.shared.up().map(|up| up.tunnel.session().clone());
        let cluster = self.login.cluster();
        cluster.delete_session(&self.first_session).await;
        if let Some(session) = current.filter(|session| *session != self.first_session) {
            cluster.delete_session(&session).await;
        }
    }
}

/// Tells the root daemon of every change of networks and name servers.
async fn follow(root: &RootLink, shared: &Shared, steering: &Steering) {
    let mut networks = shared.networks.subscribe();
    let mut name_servers = shared.name_servers.subscribe();
    let mut leads = shared.leads.wanted();
    loop {
        let is_steer = tokio::select! {
            Ok(()) = networks.changed() => true,
            Ok(()) = leads.changed() => true,
            Ok(()) = name_servers.changed() => false,
            else => return,
        };
        let result = if is_steer {
            let leads = leads.borrow_and_update().clone();
            let steer = steering.with(&networks.borrow_and_update(), &leads);
            let result = root.call(Request::Steer(steer), None).await;
            if result.is_ok() {
                shared.leads.is_steered(leads);
            }
            result
        } else {
            let servers = name_servers.borrow_and_update().clone();
            let servers = servers.into_iter().map(Into::into).collect();
            root.call(Request::NameServers { servers }, None).await
        };
        if let Err(fault) = result {
            tracing::info!(reason = %fault, "Root daemon refuses an update");
        }
    }
}

/// What the user added to and took from the cluster's networks.
struct Steering {
    also: Vec<IpNet>,
    never: Vec<IpNet>,
}

impl Steering {
    fn parse(request: &ConnectRequest) -> Result<Self, Fault> {
        let parse = |flag: &str, texts: &[String]| {
            texts
                .iter()
                .map(|text| {
                    text.parse::<IpNet>()
                        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                        .map_err(|_| {
                            let message = format!(
                                "{flag} {text} is no network: write it as 10.0.0.0/8 or 10.1.2.3"
                            );
                            Fault::new(FaultKind::Usage, message)
                        })
                })
                .collect::<Result<Vec<_>, _>>()
        };

        Ok(Self {
            also: parse("--also-proxy", &request.also_proxy)?,
            never: parse("--never-proxy", &request.never_proxy)?,
        })
    }

    /// The API server stays what it is, also where the cluster's networks contain its address.
    fn spare(&mut self, server: &str) {
        let authority = server.split_once("://").map_or(server, |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or_default();
        let address = authority
            .parse::<std::net::SocketAddr>()
            .map(|address| address.ip())
            .or_else(|_| authority.parse());
        self.never.extend(address.map(IpNet::from).ok());
    }

    /// With what names of the cluster lead to outside of its `networks`, where the user allows it.
    fn with(&self, networks: &[IpNet], leads: &[Ipv4Addr]) -> Steer {
        let allowed = leads
            .iter()
            .map(|address| IpNet::from(IpAddr::from(*address)))
            .filter(|lead| !self.never.iter().any(|never| never.contains(lead)));
        Steer {
            include: networks
                .iter()
                .chain(&self.also)
                .copied()
                .chain(allowed)
                .collect(),
            exclude: self.never.clone(),
        }
    }
}

async fn open_bundle(root: RootLink, request: &ConnectRequest) -> Result<Opened, Fault> {
    let scope = if request.cgroup.is_empty() {
        Scope::User
    } else {
        Scope::Cgroup {
            path: request.cgroup.clone(),
        }
    };
    let failed = |what: &str, error: std::io::Error| {
        Fault::new(FaultKind::Failed, format!("{what}: {error}"))
    };
    let namespace = File::open("/proc/self/ns/net")
        .map_err(|error| failed("the network namespace cannot be opened", error))?;
    let request = Request::Open(OpenBundle { scope });
    let (reply, fds) = root.call(request, Some(namespace.into())).await?;
    let Reply::Opened(bundle) = reply else {
        return Err(root_link::unexpected());
    };
    let descriptors = Descriptors::new(bundle, fds)?;

    Ok(Opened {
        root: Arc::new(root),
        descriptors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_never_steered() {
        for (server, spared) in [
            ("https://10.96.0.1:443", Some("10.96.0.1/32")),
            ("https://10.96.0.1/prefix", Some("10.96.0.1/32")),
            ("https://kubernetes.example.com:6443", None),
        ] {
            let mut steering = Steering::parse(&ConnectRequest::default()).unwrap();
            steering.spare(server);

            let excluded = steering.with(&[], &[]).exclude;

            assert_eq!(excluded.first().map(ToString::to_string).as_deref(), spared);
        }
    }

    #[test]
    fn an_address_that_is_never_proxied_is_not_steered_because_a_name_leads_there() {
        let request = ConnectRequest {
            never_proxy: vec!["192.0.2.0/24".to_owned()],
            ..ConnectRequest::default()
        };
        let steering = Steering::parse(&request).unwrap();
        let leads = ["192.0.2.10", "203.0.113.10"].map(|it| it.parse().unwrap());

        let include = steering.with(&[], &leads).include;

        assert_eq!(include, ["203.0.113.10/32".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn what_is_no_network_is_named_with_its_flag() {
        let request = ConnectRequest {
            also_proxy: vec!["10.1.2.3".to_owned(), "10.0.0/8".to_owned()],
            ..ConnectRequest::default()
        };

        let fault = Steering::parse(&request).map(drop).unwrap_err();

        assert_eq!(fault.kind, FaultKind::Usage);
        assert!(fault.message.contains("--also-proxy 10.0.0/8"), "{fault}");
    }
}

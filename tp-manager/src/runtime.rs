//! Wires the parts together, and ends them in order.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::{Client, Config};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tp_core::intercept::workload::WorkloadName;
use tp_process::sync::lock;
use tp_proto::crd::{AGENTS_PORT, HEALTH_PORT, TUNNEL_PORT, UDP_PORT};
use tp_transport::{CloseCode, Identity, TunnelServer, agents::AgentServer};

use crate::{
    access::Access,
    agents::{Agents, tokens::TokenReviews},
    args::Args,
    disconnected::Disconnected,
    gateway::{Connections, Gateway, Quotas},
    grpc::{Replica, Resolver, Workloads},
    health::{self, Health},
    housekeeping,
    index::{self, Synced},
    intercepts::{
        self, Intercepts,
        taking::Ender,
        whereabouts::{self, Whereabouts},
    },
    model::{FindError, FoundWorkload, SharedModel, Workload},
    policy::{self, Policy},
    publish::Publisher,
    sessions::{SessionAdmission, Sessions},
};
use environments::OfAgents;

mod environments;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until a signal to end, or until a task ends that never should.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let config = Config::infer()
        .await
        .context("cannot find the API server")?;
    let client = client(config, index::READ_TIMEOUT)
        .context("cannot set the connection to the API server up")?;
    let identity = Identity::generate().context("cannot make a key")?;
    let key = identity.key_hash();

    let policy = watch::Sender::new(Policy::default());
    let published = watch::Sender::new(false);
    let synced = Synced::new();
    let model = SharedModel::new();
    let sessions = Arc::new(Sessions::new(policy.subscribe()));
    let publisher = Arc::new(Publisher::new(
        client.clone(),
        args.pod_namespace.clone(),
        args.pod_name.clone(),
    ));
    let disconnected = Arc::new(Disconnected::default());
    let agent_server = AgentServer::new(&identity).context("cannot use the manager's key")?;
    let server = listen_udp(identity, &sessions)?;
    // The kubelet forwards ports to it even if pods have no other IPv4 address.
    let links = listen(Ipv4Addr::LOCALHOST.into(), TUNNEL_PORT).await?;
    // The kubelet probes the pod's first address, IPv4 or IPv6.
    let probes = listen_everywhere(HEALTH_PORT).await?;
    let agents_listener = listen_everywhere(AGENTS_PORT).await?;
    let intercepts = intercepts(&args, &sessions, &disconnected, &model);
    let access = Access::new(client.clone());
    let agents = Arc::new(Agents::new(
        agent_server,
        Arc::clone(&intercepts),
        model.clone(),
        Box::new(TokenReviews(client.clone())),
    ));
    let gateway = Arc::new(Gateway {
        server: Arc::clone(&server),
        sessions: Arc::clone(&sessions),
        access: Arc::clone(&access),
        model: model.clone(),
        publisher: Arc::clone(&publisher),
        disconnected: Arc::clone(&disconnected),
        replica: Arc::new(replica(&args, client.clone(), &agents).await?),
        allow: args.allow.clone(),
        connections: Connections::default(),
        quotas: Quotas::default(),
        intercepts: Arc::clone(&intercepts),
    });
    let readiness = Arc::new(Readiness {
        policy: policy.subscribe(),
        published: published.subscribe(),
        synced: synced.clone(),
        last_reported: Mutex::new(Ok(())),
    });

    let mut tasks = JoinSet::new();
    let mut start = |task: BoxFuture<'static, ()>| {
        tasks.spawn(task);
    };
    index::tasks(&client, &model, &synced)
        .into_iter()
        .for_each(&mut start);
    start(Box::pin(index::networks::follow(
        client.clone(),
        args.pod_namespace.clone(),
        model,
        synced.part(),
    )));
    trust_tasks(&client, args.pod_namespace, &intercepts, &synced, policy)
        .into_iter()
        .for_each(&mut start);
    let publishing = Arc::clone(&publisher);
    start(Box::pin(async move {
        publishing.keep(key, published).await;
    }));
    object_tasks(&client, &sessions, &intercepts, &synced, access)
        .into_iter()
        .for_each(&mut start);
    start(Box::pin(housekeeping::keep(
        client,
        sessions,
        disconnected,
        intercepts,
    )));
    start(Box::pin(agents.serve(agents_listener)));
    start(Box::pin(health::serve(probes, readiness)));
    start(Box::pin(Arc::clone(&gateway).accept_links(links)));
    start(Box::pin(gateway.accept_peers()));
    tracing::info!(%key, "Manager serves");

    let stopped = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = tasks.join_next() => Err(anyhow::anyhow!("a part of the manager ended by itself")),
    };
    end(&publisher, &server).await;
    tasks.shutdown().await;

    stopped
}

/// The tasks that keep Sessions and Intercepts, and the status of these.
fn object_tasks(
    client: &Client,
    sessions: &Arc<Sessions>,
    intercepts: &Arc<Intercepts>,
    synced: &Synced,
    access: Arc<Access>,
) -> Vec<BoxFuture<'static, ()>> {
    let (following, listed, watching) = (Arc::clone(sessions), synced.part(), client.clone());
    let followed = (Arc::clone(intercepts), synced.part(), client.clone());
    let renewing = Arc::clone(intercepts);

    vec![
        Box::pin(async move { following.follow(watching, listed).await }),
        Box::pin(async move {
            let (intercepts, listed, watching) = followed;
            intercepts.follow(watching, listed).await;
        }),
        Box::pin(async move { renewing.follow_sessions().await }),
        Box::pin(intercepts::status::keep(
            client.clone(),
            Arc::clone(intercepts),
        )),
        Box::pin(intercepts::rights::keep(access, Arc::clone(intercepts))),
    ]
}

fn intercepts(
    args: &Args,
    sessions: &Arc<Sessions>,
    disconnected: &Arc<Disconnected>,
    model: &SharedModel,
) -> Arc<Intercepts> {
    let release_after = Duration::from_secs(args.release_after_seconds);
    let whereabouts = Whereabouts::new(args.pod_name.clone(), release_after, Timestamp::now());

    Arc::new(Intercepts::new(
        Arc::clone(sessions),
        Arc::clone(disconnected),
        model.clone(),
        whereabouts,
    ))
}

/// The tasks that keep what is in the managers' own namespace, or only administrators write: the record
/// of where sessions are, and the admission policy.
fn trust_tasks(
    client: &Client,
    namespace: String,
    intercepts: &Arc<Intercepts>,
    synced: &Synced,
    policy: watch::Sender<Policy>,
) -> [BoxFuture<'static, ()>; 3] {
    let (following, listed) = (Arc::clone(intercepts), synced.part());
    let (watching, of) = (client.clone(), namespace.clone());

    [
        Box::pin(async move { following.follow_record(watching, of, listed).await }),
        Box::pin(whereabouts::keep(
            client.clone(),
            namespace.clone(),
            Arc::clone(intercepts),
        )),
        Box::pin(policy::follow(client.clone(), namespace, policy)),
    ]
}

async fn end(publisher: &Publisher, server: &TunnelServer) {
    tracing::info!("Manager ends");
    // Clients go to another replica while this one still answers.
    publisher.withdraw().await;
    if timeout(CLOSE_TIMEOUT, server.close(CloseCode::Shutdown))
        .await
        .is_err()
    {
        tracing::debug!("Some clients do not know that this replica ends");
    }
}

/// A client that gives up a connection if an answer is overdue by `read_timeout`: a restarted watch
/// may be sent over an idle connection that has died as well.
fn client(mut config: Config, read_timeout: Duration) -> kube::Result<Client> {
    config.read_timeout = Some(read_timeout);
    // Counts from the request, not from the previous answer.
    config.reset_reader_on_write = true;

    Client::try_from(config)
}

fn listen_udp(identity: Identity, sessions: &Arc<Sessions>) -> anyhow::Result<Arc<TunnelServer>> {
    let udp = std::net::UdpSocket::bind((unspecified(), UDP_PORT))
        .with_context(|| format!("cannot bind UDP port {UDP_PORT}"))?;
    let admission = Arc::new(SessionAdmission(Arc::clone(sessions)));

    TunnelServer::bind(Some(udp), identity, admission).context("cannot set the tunnel up")
}

/// The unspecified address: of IPv6 if the pod has no IPv4 address.
fn unspecified() -> IpAddr {
    // Only looks up a route; sends nothing (192.0.2.1 is for documentation, RFC 5737).
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let route = socket.and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)));

    match route {
        Ok(()) => Ipv4Addr::UNSPECIFIED.into(),
        Err(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

async fn listen(address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((address, port))
        .await
        .with_context(|| format!("cannot bind TCP port {port}"))
}

/// At the addresses of both families, or those of IPv4 alone.
async fn listen_everywhere(port: u16) -> anyhow::Result<TcpListener> {
    match listen(Ipv6Addr::UNSPECIFIED.into(), port).await {
        Ok(listener) => Ok(listener),
        Err(_) => listen(Ipv4Addr::UNSPECIFIED.into(), port).await,
    }
}

async fn replica(args: &Args, client: Client, agents: &Arc<Agents>) -> anyhow::Result<Replica> {
    let conf = tokio::fs::read_to_string(RESOLV_CONF)
        .await
        .with_context(|| format!("cannot read {RESOLV_CONF}"))?;

    Ok(Replica {
        pod: args.pod_name.clone(),
        namespace: args.pod_namespace.clone(),
        node: args.node_name.clone(),
        resolver: Resolver::from_conf(&conf),
        workloads: Box::new(Lister(client.clone())),
        environments: Box::new(OfAgents {
            client: client.clone(),
            agents: Arc::clone(agents),
        }),
        endings: Box::new(Ender(client)),
    })
}

struct Lister(Client);

impl Workloads for Lister {
    fn find(
        &self,
        namespace: String,
        name: WorkloadName,
    ) -> BoxFuture<'static, Result<FoundWorkload, FindError>> {
        Box::pin(index::find::find(self.0.clone(), namespace, name))
    }

    fn list(&self, namespace: String) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
        index::workloads::boxed(self.0.clone(), namespace)
    }
}

/// The conditions of the readiness probe.
struct Readiness {
    policy: watch::Receiver<Policy>,
    published: watch::Receiver<bool>,
    synced: Synced,
    last_reported: Mutex<Result<(), String>>,
}

impl Health for Readiness {
    fn ready(&self) -> Result<(), String> {
        let ready = self.check();
        let mut last_reported = lock(&self.last_reported);
        // The kubelet does not show a probe's answer.
        if *last_reported != ready {
            match &ready {
                Ok(()) => tracing::info!("Ready"),
                Err(reason) => tracing::info!(reason, "Not ready"),
            }
            last_reported.clone_from(&ready);
        }

        ready
    }
}

impl Readiness {
    fn check(&self) -> Result<(), String> {
        self.policy.borrow().trust(Timestamp::now())?;
        if !self.synced.is_complete() {
            return Err("the cluster is still being listed".into());
        }
        if !*self.published.borrow() {
            return Err("the hash of the key is not published yet".into());
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests;

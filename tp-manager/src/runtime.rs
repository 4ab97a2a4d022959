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
use tp_proto::crd::{HEALTH_PORT, TUNNEL_PORT, UDP_PORT};
use tp_transport::{CloseCode, Identity, TunnelServer};

use crate::{
    access::Access,
    args::Args,
    gateway::{Connected, Gateway, Shares},
    grpc::{Replica, Resolver, Workloads},
    health::{self, Health},
    housekeeping::{self, Departed},
    index::{self, Synced},
    model::{SharedModel, Workload},
    policy::{self, Policy},
    publish::Publisher,
    sessions::{Gate, Sessions},
    sync::lock,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until it is told to stop, or a part ends that never should.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let config = Config::infer()
        .await
        .context("cannot find the API server")?;
    let client =
        client(config, index::SILENCE).context("cannot set the connection to the API server up")?;
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
    let departed = Arc::new(Departed::default());
    let server = listen_udp(identity, &sessions)?;
    // The kubelet forwards ports to it also where pods have no other address of IPv4.
    let links = listen(Ipv4Addr::LOCALHOST.into(), TUNNEL_PORT).await?;
    // The kubelet probes the first address of the pod, of whichever family that is.
    let probes = match listen(Ipv6Addr::UNSPECIFIED.into(), HEALTH_PORT).await {
        Ok(probes) => probes,
        Err(_) => listen(Ipv4Addr::UNSPECIFIED.into(), HEALTH_PORT).await?,
    };
    let gateway = Arc::new(Gateway {
        server: Arc::clone(&server),
        sessions: Arc::clone(&sessions),
        access: Access::new(client.clone()),
        model: model.clone(),
        publisher: Arc::clone(&publisher),
        departed: Arc::clone(&departed),
        replica: Arc::new(replica(&args, client.clone()).await?),
        allow: args.allow.clone(),
        connected: Connected::default(),
        shares: Shares::default(),
    });
    let readiness = Arc::new(Readiness {
        policy: policy.subscribe(),
        published: published.subscribe(),
        synced: synced.clone(),
        told: Mutex::new(Ok(())),
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
    let listed = synced.part();
    let following = Arc::clone(&sessions);
    let watching = client.clone();
    start(Box::pin(async move {
        following.follow(watching, listed).await;
    }));
    start(Box::pin(policy::follow(
        client.clone(),
        args.pod_namespace,
        policy,
    )));
    let publishing = Arc::clone(&publisher);
    start(Box::pin(async move {
        publishing.keep(key, published).await;
    }));
    start(Box::pin(housekeeping::keep(client, sessions, departed)));
    start(Box::pin(health::serve(probes, readiness)));
    start(Box::pin(Arc::clone(&gateway).accept_links(links)));
    start(Box::pin(gateway.accept_peers()));
    tracing::info!(%key, "Manager serves");

    let stopped = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = tasks.join_next() => Err(anyhow::anyhow!("a part of the manager ended by itself")),
    };
    tracing::info!("Manager ends");
    // Clients go to another replica while this one still answers.
    publisher.withdraw().await;
    if timeout(CLOSE_TIMEOUT, server.close(CloseCode::Shutdown))
        .await
        .is_err()
    {
        tracing::debug!("Some clients do not know that this replica ends");
    }
    tasks.shutdown().await;

    stopped
}

/// A client that takes a connection for dead on which nothing comes for so long where something is
/// due: a watch that begins anew may be sent on one that was idle, and has died as well.
fn client(mut config: Config, silence: Duration) -> kube::Result<Client> {
    config.read_timeout = Some(silence);
    // Since the request, however long ago the answer before it came.
    config.reset_reader_on_write = true;

    Client::try_from(config)
}

fn listen_udp(identity: Identity, sessions: &Arc<Sessions>) -> anyhow::Result<Arc<TunnelServer>> {
    let udp = std::net::UdpSocket::bind((unspecified(), UDP_PORT))
        .with_context(|| format!("cannot bind UDP port {UDP_PORT}"))?;
    let gate = Arc::new(Gate(Arc::clone(sessions)));

    TunnelServer::bind(Some(udp), identity, gate).context("cannot set the tunnel up")
}

/// All addresses of the pod: of IPv6 where it has none of IPv4.
fn unspecified() -> IpAddr {
    // Asks the kernel for a route, and sends nothing (RFC 5737: nobody is there).
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

async fn replica(args: &Args, client: Client) -> anyhow::Result<Replica> {
    let conf = tokio::fs::read_to_string(RESOLV_CONF)
        .await
        .with_context(|| format!("cannot read {RESOLV_CONF}"))?;

    Ok(Replica {
        pod: args.pod_name.clone(),
        namespace: args.pod_namespace.clone(),
        node: args.node_name.clone(),
        resolver: Resolver::from_conf(&conf),
        workloads: Box::new(Lister(client)),
    })
}

struct Lister(Client);

impl Workloads for Lister {
    fn list(&self, namespace: String) -> BoxFuture<'static, Result<Vec<Workload>, String>> {
        index::workloads::boxed(self.0.clone(), namespace)
    }
}

/// Everything that must be true before a client is sent here.
struct Readiness {
    policy: watch::Receiver<Policy>,
    published: watch::Receiver<bool>,
    synced: Synced,
    told: Mutex<Result<(), String>>,
}

impl Health for Readiness {
    fn ready(&self) -> Result<(), String> {
        let ready = self.judge();
        let mut told = lock(&self.told);
        // A probe's answer is shown nowhere; the log is.
        if *told != ready {
            match &ready {
                Ok(()) => tracing::info!("Ready"),
                Err(reason) => tracing::info!(reason, "Not ready"),
            }
            told.clone_from(&ready);
        }

        ready
    }
}

impl Readiness {
    fn judge(&self) -> Result<(), String> {
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

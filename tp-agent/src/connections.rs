//! Accepted connections: each finds its Intercept by the port that was meant, gets a carrier, and is
//! carried to the end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt as _;
use socket2::SockRef;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};
use tp_process::sync::lock;
use tp_transport::{
    InterceptedFrom, SpliceCounters,
    agents::{AgentFlow, carry},
    keep_alive,
    splice::failed,
};

use crate::{
    managers::Managers,
    places::Place,
    probes::{ContainerDoor, ProbedPort},
};

/// Of the carriers tried: a warm one may have ended unnoticed.
const MAX_ATTEMPTS: usize = 3;

/// Which Intercept has a port, and which manager leases it.
pub(crate) type Routes = BTreeMap<u16, PortRoute>;

#[derive(Clone)]
pub(crate) struct PortRoute {
    pub(crate) intercept: String,
    pub(crate) manager: String,
    /// Of a port that is probed by HTTP.
    pub(crate) probes: Option<ProbedPort>,
    pub(crate) container: ContainerDoor,
}

/// Owns the tasks of all connections; they end with it.
pub(crate) struct CarriedConnections {
    managers: Arc<Managers>,
    tasks: Mutex<JoinSet<()>>,
}

/// A connection that was accepted in a pod.
pub(crate) struct AcceptedConnection {
    pub(crate) client: TcpStream,
    /// Ours, in the pod: the port is the one that was meant.
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl AcceptedConnection {
    /// Closed from now on in any way but the orderly one, it is reset.
    pub(crate) fn new(client: TcpStream) -> std::io::Result<Self> {
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        // A client that vanished would keep its place.
        keep_alive(&client)?;

        Ok(Self {
            local: canonical(client.local_addr()?),
            peer: canonical(client.peer_addr()?),
            client,
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();

    SocketAddr::new(ip, address.port())
}

impl CarriedConnections {
    pub(crate) fn new(managers: Arc<Managers>) -> Self {
        Self {
            managers,
            tasks: Mutex::default(),
        }
    }

    /// Carries the connection, of the pod with this UID, and has the place until its end.
    pub(crate) fn serve(
        &self,
        connection: AcceptedConnection,
        place: Place,
        route: PortRoute,
        pod: String,
    ) {
        let managers = Arc::clone(&self.managers);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let AcceptedConnection {
                mut client,
                local,
                peer,
            } = connection;
            let _place = place;
            let mut head = Vec::new();
            let probes = route.probes.filter(|it| it.nodes.contains(&peer.ip()));
            if let Some(probes) = probes {
                match probes.sort(client, local).await {
                    Ok(Some(sorted)) => (client, head) = sorted,
                    Ok(None) => return,
                    Err(error) => return tracing::debug!(%error, "Probe or client was reset"),
                }
            }
            let from = InterceptedFrom {
                intercept: route.intercept,
                client: peer,
                pod: local,
            };
            let container = route.container;
            container.counts.count_one();
            let taker = tokio::select! {
                taker = taker(&managers, &route.manager, &from, &pod, &head) => taker,
                error = failed(&client) => {
                    tracing::debug!(%error, "Client has gone");
                    None
                }
            };
            let served = match taker {
                Some(Taker::Container) => container.pass(client, local, &head).await,
                Some(Taker::Workstation(carrier)) => {
                    container.counts.uncount_one();
                    carry(client, *carrier, &SpliceCounters::default()).await
                }
                None => return container.counts.uncount_one(),
            };
            if let Err(error) = served {
                tracing::debug!(%error, "Intercepted connection was reset");
            }
        });
    }

    /// Resets all.
    pub(crate) fn abort(&self) {
        lock(&self.tasks).abort_all();
    }
}

/// Who takes a connection.
enum Taker {
    /// It was sent the beginning.
    Workstation(Box<AgentFlow>),
    Container,
}

/// It is asked for once: who has asked does not know what came of it.
async fn taker(
    managers: &Managers,
    manager: &str,
    from: &InterceptedFrom,
    pod: &str,
    head: &[u8],
) -> Option<Taker> {
    for _ in 0..MAX_ATTEMPTS {
        let Some(mut carrier) = managers.carrier(manager).await else {
            break;
        };
        if carrier.ended().now_or_never().is_some() {
            continue;
        }
        match carrier.carry(from, pod).await {
            Ok(Ok(mut carrier)) => {
                carrier.write_all(head).await.ok()?;
                carrier.flush().await.ok()?;
                return Some(Taker::Workstation(Box::new(carrier)));
            }
            Ok(Err(verdict)) if verdict.by_container => return Some(Taker::Container),
            Ok(Err(verdict)) => {
                let (outcome, reason) = (verdict.outcome, verdict.reason);
                tracing::debug!(outcome, reason, "Intercepted connection is refused");
            }
            Err(error) => tracing::debug!(%error, "Intercepted connection is not carried"),
        }
        return None;
    }
    tracing::debug!(manager, "No carrier for an intercepted connection");

    None
}

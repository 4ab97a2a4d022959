//! Keeps a tunnel to the manager: connects, follows the table, connects again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
    table,
    tunnel::{
        Endpoint, HelloRequest, TableEvent, WatchTableRequest, manager_client::ManagerClient,
        table_event::Event,
    },
    version,
};
use tp_transport::{
    CloseCode, ConnectError, Identity, KeyHash, PathChoice, PathKind, SessionRef, Tunnel,
    TunnelConfig,
};

use super::{
    cluster::Replica,
    progress::Progress,
    renewal::{self, Login, Renewal},
    shared::{Shared, Up},
};

/// For each control call while connecting.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);
/// For the first answer by UDP where only UDP is allowed.
const UDP_LIMIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Uplink {
    pub(super) login: Arc<Login>,
    pub(super) choice: PathChoice,
    pub(super) shared: Arc<Shared>,
    /// Cancelled when the connection is to end.
    pub(super) stop: CancellationToken,
}

/// A tunnel whose table has arrived.
pub(super) struct Established {
    up: Up,
    session: SessionRef,
    key: KeyHash,
    events: Streaming<TableEvent>,
}

impl Uplink {
    /// Connects to one of `replicas`; nothing is left behind if that fails.
    pub(super) async fn establish(
        &self,
        user: &UserInfo,
        replicas: &[Replica],
        progress: &Progress,
    ) -> Result<Established, Fault> {
        let mut failure = None;
        for replica in replicas {
            match self.establish_with(user, replica, progress).await {
                Ok(established) => return Ok(established),
                Err(fault) if is_of_replica(&fault) => failure = Some(fault),
                Err(fault) => return Err(fault),
            }
        }

        Err(failure.unwrap_or_else(|| temporary("no replica of the traffic manager serves")))
    }

    async fn establish_with(
        &self,
        user: &UserInfo,
        replica: &Replica,
        progress: &Progress,
    ) -> Result<Established, Fault> {
        progress.step(format!("forwarding a port to {}", replica.pod));
        let identity = Identity::generate()
            .map_err(|error| Fault::new(FaultKind::Failed, format!("no key: {error}")))?;
        let key = identity.key_hash();
        let cluster = self.login.cluster();
        let (link, session) = tokio::join!(
            cluster.port_forward(&replica.pod),
            cluster.create_session(user, &identity),
        );
        let session = session?;
        let result = async {
            let link = match link {
                Ok(link) => link,
                Err(fault) if fault.kind == FaultKind::NoPermission => return Err(fault),
                Err(fault) => return Err(cluster.not_forwarded(&replica.pod, fault).await),
            };
            progress.step("opening the tunnel".to_owned());
            let config = TunnelConfig {
                identity,
                session: session.clone(),
                manager_key: replica.key,
                choice: self.choice,
            };
            let tunnel = match Tunnel::connect(link, config).await {
                Ok(tunnel) => tunnel,
                Err(error) => return Err(self.refused(replica, error).await),
            };
            self.greet(tunnel, replica).await
        }
        .await;
        match result {
            Ok((up, events)) => Ok(Established {
                up,
                session,
                key,
                events,
            }),
            Err(fault) => {
                cluster.delete_session(&session).await;
                Err(fault)
            }
        }
    }

    async fn greet(
        &self,
        tunnel: Tunnel,
        replica: &Replica,
    ) -> Result<(Up, Streaming<TableEvent>), Fault> {
        let io = tunnel
            .open_control()
            .await
            .map_err(|error| temporary(&error.to_string()))?;
        let channel = io
            .into_channel()
            .await
            .map_err(|error| temporary(&error.to_string()))?;
        let mut manager = ManagerClient::new(channel);
        let hello = HelloRequest {
            version: tp_proto::VERSION.to_owned(),
        };
        let hello = bounded(manager.hello(hello)).await?.into_inner();
        version::check("the traffic manager", &hello.version)?;
        if !hello.cluster_domain.is_empty() {
            self.shared.set_domain(&hello.cluster_domain);
        }
        tunnel.set_candidates(addresses(&hello.candidates));
        let mut events = bounded(manager.watch_table(WatchTableRequest {}))
            .await?
            .into_inner();
        let first = bounded(events.message()).await?;
        match first.and_then(|event| event.event) {
            Some(snapshot @ Event::Snapshot(_)) => self.shared.apply(snapshot),
            _ => return Err(temporary("the traffic manager sent no table")),
        }
        if matches!(self.choice, PathChoice::UdpOnly) {
            udp_answers(&tunnel).await?;
        }
        let up = Up {
            tunnel,
            manager,
            replica: replica.pod.clone(),
            version: hello.version,
        };

        Ok((up, events))
    }

    async fn refused(&self, replica: &Replica, error: ConnectError) -> Fault {
        match error {
            ConnectError::LinkEnded | ConnectError::TimedOut(_) => {
                self.login.cluster().not_ready(&replica.pod).await
            }
            ConnectError::Refused(reason) => temporary(&format!(
                "the traffic manager does not admit this session: {reason}"
            )),
            error => temporary(&error.to_string()),
        }
    }

    /// Serves `established`, then whatever replaces it, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut established: Established) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            self.shared.up.send_replace(Some(established.up.clone()));
            self.shared.reason.send_replace(String::new());
            let reason = self.follow(&mut established).await;
            if self.stop.is_cancelled() {
                return;
            }
            tracing::info!(%reason, "Tunnel lost");
            self.shared.up.send_replace(None);
            self.shared.reason.send_replace(reason);
            established.up.tunnel.close(CloseCode::Quit).await;
            let cluster = self.login.cluster();
            cluster.delete_session(&established.session).await;
            established = self.again(&mut backoff).await;
            backoff.reset();
        }
    }

    async fn again(&self, backoff: &mut Backoff) -> Established {
        loop {
            sleep(backoff.pause(jitter())).await;
            match self.establish_anew().await {
                Ok(established) => return established,
                Err(fault) => {
                    tracing::info!(reason = %fault, "Not connected, trying again");
                    self.shared.reason.send_replace(fault.message);
                }
            }
        }
    }

    /// As the user is known by now: groups that have changed make the API server refuse a Session
    /// with the old ones.
    async fn establish_anew(&self) -> Result<Established, Fault> {
        let user = self.login.user().await?;
        let replicas = self.login.cluster().replicas().await?;

        self.establish(&user, &replicas, &Progress::silent()).await
    }

    /// Follows the table, renews the Session and keeps path T alive; returns why the tunnel ended.
    async fn follow(&self, established: &mut Established) -> String {
        let Established {
            up,
            session,
            key,
            events,
        } = established;
        let relink = self.relink(up);
        let renewal = renewal::keep(Renewal {
            login: Arc::clone(&self.login),
            shared: Arc::clone(&self.shared),
            session: session.clone(),
            key: *key,
            newest: None,
        });
        tokio::pin!(relink, renewal);
        loop {
            tokio::select! {
                // First, because a tunnel that ends breaks the table as well.
                biased;
                reason = up.tunnel.closed() => return reason.to_string(),
                never = &mut relink => match never {},
                never = &mut renewal => match never {},
                event = events.message() => match event {
                    // An event without content is of a kind that came later.
                    Ok(Some(TableEvent { event: Some(Event::Candidates(found)) })) => {
                        up.tunnel.set_candidates(addresses(&found.endpoints));
                    }
                    Ok(Some(event)) => event.event.into_iter().for_each(|it| self.shared.apply(it)),
                    Ok(None) => return "the traffic manager ended the table".to_owned(),
                    Err(status) => return format!("the table broke: {}", status.message()),
                },
            }
        }
    }

    /// Forwards a port again whenever the byte stream ends under a living tunnel.
    async fn relink(&self, up: &Up) -> std::convert::Infallible {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            up.tunnel.link_ended().await;
            let linked = match self.login.cluster().port_forward(&up.replica).await {
                Ok(link) => up
                    .tunnel
                    .replace_link(link)
                    .await
                    .map_err(|error| error.to_string()),
                Err(fault) => Err(fault.message),
            };
            match linked {
                Ok(()) => backoff.reset(),
                Err(reason) => {
                    tracing::info!(%reason, "Port-forward not restored, trying again");
                    sleep(backoff.pause(jitter())).await;
                }
            }
        }
    }

    /// Ends the tunnel and the Session object, which `established` still owns.
    pub(super) async fn discard(&self, established: Established) {
        established.up.tunnel.close(CloseCode::Quit).await;
        let cluster = self.login.cluster();
        cluster.delete_session(&established.session).await;
    }
}

impl Established {
    pub(super) fn session(&self) -> &SessionRef {
        &self.session
    }
}

fn addresses(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let address = |it: &Endpoint| {
        let port = u16::try_from(it.port).ok()?;
        Some(SocketAddr::new(table::address(&it.address)?, port))
    };

    endpoints.iter().filter_map(address).collect()
}

/// Where no data may take the port-forward, a tunnel that UDP does not reach is of no use.
async fn udp_answers(tunnel: &Tunnel) -> Result<(), Fault> {
    let mut path = tunnel.path();
    let answers = timeout(
        UDP_LIMIT,
        path.wait_for(|status| status.path == PathKind::Udp),
    );
    if matches!(answers.await, Ok(Ok(_))) {
        return Ok(());
    }
    let reason = tunnel.path().borrow().reason.clone();
    Err(Fault::new(
        FaultKind::Unavailable,
        format!(
            "the traffic manager does not answer by UDP, and --transport quic allows nothing else \
             ({reason}): use --transport auto, or open the way to its UDP port"
        ),
    ))
}

async fn bounded<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Fault> {
    match timeout(CONTROL_LIMIT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(status)) => Err(temporary(&format!(
            "the traffic manager refuses: {}",
            status.message()
        ))),
        Err(_) => Err(temporary(
            "the traffic manager does not answer through the tunnel",
        )),
    }
}

/// Whether another replica may serve: no port can be forwarded to a node that is gone.
fn is_of_replica(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::TemporaryFailure | FaultKind::Unavailable
    )
}

fn temporary(message: &str) -> Fault {
    Fault::new(FaultKind::TemporaryFailure, format!("{message}: try again"))
}

/// Sub-second digits of the clock are random enough to spread clients.
pub(super) fn jitter() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    f64::from(now.map_or(0, |now| now.subsec_nanos())) / 1e9
}

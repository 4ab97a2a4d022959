//! Keeps a tunnel to the manager: connects, follows the table, reconnects.

use std::{collections::BTreeSet, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{FusedFuture as _, join_all},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
    table::{self, SnapshotAssembler},
    tunnel::{
        Endpoint, HelloRequest, TableEvent, WatchTableRequest, manager_client::ManagerClient,
        table_event::Event,
    },
    version,
};
use tp_transport::{
    CloseCode, ClosedReason, ConnectError, Identity, KeyHash, PathChoice, PathKind,
    SESSION_GONE_AFTER, SessionRef, Tunnel, TunnelConfig,
};

use super::{
    cluster::Replica,
    progress::Progress,
    renewal::{self, Login, Renewal},
    shared::{ActiveTunnel, Shared},
};

/// Bounds each control call while connecting.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the wait for the first answer by UDP where only UDP is allowed.
const UDP_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(250);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(10);

use asleep::{slept_longer, suspended};
use attempt::{Attempt, Failure, race};
use session_objects::SessionObjects;

mod asleep;
mod attempt;
mod session_objects;

pub(super) struct Uplink {
    pub(super) login: Arc<Login>,
    pub(super) choice: PathChoice,
    pub(super) shared: Arc<Shared>,
    /// Cancelled when the connection is to end.
    pub(super) stop: CancellationToken,
    objects: SessionObjects,
}

/// How a tunnel ended.
enum End {
    /// It may be replaced.
    Lost(String),
    /// Somebody ended the session.
    Deleted,
}

/// A tunnel whose table has arrived.
pub(super) struct Established {
    up: ActiveTunnel,
    session: SessionRef,
    key: KeyHash,
    events: Streaming<TableEvent>,
}

/// A tunnel on which the manager has said hello and sent its table.
struct ReadyTunnel {
    up: ActiveTunnel,
    events: Streaming<TableEvent>,
    table: Event,
    domain: String,
}

/// The result of a successful attempt.
struct OpenedTunnel {
    ready: ReadyTunnel,
    session: SessionRef,
    key: KeyHash,
}

impl Uplink {
    pub(super) fn new(
        login: Arc<Login>,
        choice: PathChoice,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            login,
            choice,
            shared,
            stop,
            objects: SessionObjects::default(),
        }
    }

    /// Connects to one of `replicas`, tried in random order with `lost` last. A failure leaves nothing
    /// behind.
    pub(super) async fn establish(
        &self,
        user: &UserInfo,
        replicas: &[Replica],
        lost: Option<&str>,
        progress: &Progress,
    ) -> Result<Established, Fault> {
        let mut attempts = Vec::new();
        for replica in replicas {
            let identity = Identity::generate()
                .map_err(|error| Fault::new(FaultKind::Failed, format!("no key: {error}")))?;
            let cluster = self.login.cluster();
            attempts.push(Attempt::new(
                cluster,
                user,
                replica,
                identity,
                &self.objects,
            ));
        }
        // The keys are random, and so is this order.
        attempts.sort_by_key(|attempt| {
            let is_lost = lost == Some(attempt.replica.pod.as_str());
            (is_lost, attempt.identity.key_hash().to_string())
        });
        let open = |attempt| self.open(attempt, progress).boxed();
        let (opened, begun) = race(attempts.iter().map(open).collect()).await;
        let established = match opened {
            Some(Ok(opened)) => Ok(self.take(opened)),
            Some(Err(fault)) => Err(fault),
            None => Err(temporary("no replica of the traffic manager serves")),
        };
        let key = established.as_ref().ok().map(|it| it.key);
        let others = attempts[..begun]
            .iter()
            .filter(|attempt| Some(attempt.identity.key_hash()) != key)
            .map(Attempt::withdraw);
        join_all(others).await;

        established
    }

    /// Opens the tunnel of one attempt.
    async fn open(
        &self,
        attempt: &Attempt<'_>,
        progress: &Progress,
    ) -> Result<OpenedTunnel, Failure> {
        let replica = attempt.replica;
        progress.step(format!("forwarding a port to {}", replica.pod));
        let cluster = &attempt.cluster;
        let (link, session) =
            tokio::join!(cluster.port_forward(&replica.pod), attempt.session.clone());
        let session = session?;
        let link = match link {
            Ok(link) => link,
            Err(fault) if fault.kind == FaultKind::NoPermission => {
                return Err(Failure::of_replica(fault));
            }
            Err(fault) => return Err(cluster.not_forwarded(&replica.pod, fault).await.into()),
        };
        progress.step("opening the tunnel".to_owned());
        let config = TunnelConfig {
            identity: attempt.identity.clone(),
            session: session.clone(),
            manager_key: replica.key,
            choice: self.choice,
        };
        let tunnel = match Tunnel::connect(link, config).await {
            Ok(tunnel) => tunnel,
            Err(error) => return Err(self.refused(replica, error).await.into()),
        };
        let ready = self.hello(tunnel, &session, replica).await?;

        Ok(OpenedTunnel {
            ready,
            session,
            key: attempt.identity.key_hash(),
        })
    }

    fn take(&self, opened: OpenedTunnel) -> Established {
        let ReadyTunnel {
            up,
            events,
            table,
            domain,
        } = opened.ready;
        if !domain.is_empty() {
            self.shared.set_domain(&domain);
        }
        self.shared.apply(table);

        Established {
            up,
            session: opened.session,
            key: opened.key,
            events,
        }
    }

    async fn hello(
        &self,
        tunnel: Tunnel,
        session: &SessionRef,
        replica: &Replica,
    ) -> Result<ReadyTunnel, Fault> {
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
            version: tp_core::VERSION.to_owned(),
        };
        let hello = bounded(manager.hello(hello)).await?.into_inner();
        version::check("the traffic manager", &hello.version)?;
        tunnel.set_candidates(addresses(&hello.candidates));
        let mut events = bounded(manager.watch_table(WatchTableRequest {}))
            .await?
            .into_inner();
        let mut parts = SnapshotAssembler::default();
        let table = loop {
            let event = bounded(events.message()).await?;
            let event = event.ok_or_else(|| temporary("the traffic manager sent no table"))?;
            match event.event.and_then(|event| parts.take(event)) {
                Some(table @ Event::Snapshot(_)) => break table,
                Some(Event::Candidates(found)) => {
                    tunnel.set_candidates(addresses(&found.endpoints));
                }
                // Part of a snapshot, or an event of a later version.
                None => {}
                Some(_) => return Err(temporary("the traffic manager sent no table")),
            }
        };
        if matches!(self.choice, PathChoice::UdpOnly) {
            wait_for_udp(&tunnel).await?;
        }
        let up = ActiveTunnel {
            tunnel,
            session: session.clone(),
            manager,
            replica: replica.pod.clone(),
            version: hello.version,
        };

        Ok(ReadyTunnel {
            up,
            events,
            table,
            domain: hello.cluster_domain,
        })
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

    /// Serves `established`, then its replacements, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut established: Established) {
        let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
        loop {
            self.shared.up.send_replace(Some(established.up.clone()));
            self.shared.reason.send_replace(String::new());
            let end = self.follow(&mut established).await;
            if self.stop.is_cancelled() {
                return;
            }
            let reason = match end {
                End::Lost(reason) => reason,
                End::Deleted => {
                    self.shared.up.send_replace(None);
                    self.shared.deleted.cancel();
                    // The connection ends now, and this task with it.
                    return pending().await;
                }
            };
            tracing::info!(%reason, "Tunnel lost");
            self.shared.up.send_replace(None);
            self.shared.reason.send_replace(reason);
            established.up.tunnel.close(CloseCode::Quit).await;
            self.delete(&established.session).await;
            let lost = established.up.replica;
            established = self.reconnect(&lost, &mut backoff).await;
            backoff.reset();
        }
    }

    async fn reconnect(&self, lost: &str, backoff: &mut Backoff) -> Established {
        loop {
            sleep(backoff.pause(fastrand::f64())).await;
            match self.establish_again(lost).await {
                Ok(established) => return established,
                Err(fault) => {
                    tracing::info!(reason = %fault, "Not connected, trying again");
                    self.shared.reason.send_replace(fault.message);
                }
            }
        }
    }

    /// Asks for the user again: the API server refuses a Session with groups that have changed.
    async fn establish_again(&self, lost: &str) -> Result<Established, Fault> {
        let user = self.login.user().await?;
        let replicas = self.login.cluster().replicas().await?;

        let silent = Progress::silent();
        self.establish(&user, &replicas, Some(lost), &silent).await
    }

    /// Follows the table, renews the Session and keeps the stream path alive, until the tunnel ends.
    async fn follow(&self, established: &mut Established) -> End {
        let Established {
            up,
            session,
            key,
            events,
        } = established;
        let port_forward = self.restore_port_forward(up);
        let renewal = renewal::keep(Renewal {
            login: Arc::clone(&self.login),
            shared: Arc::clone(&self.shared),
            session: session.clone(),
            key: *key,
            newest: None,
        });
        let others = self.delete_others(session).fuse();
        let slept = slept_longer(SESSION_GONE_AFTER, suspended);
        tokio::pin!(port_forward, renewal, others, slept);
        let mut parts = SnapshotAssembler::default();
        loop {
            tokio::select! {
                // First, because a tunnel that ends breaks the table as well.
                biased;
                reason = up.tunnel.closed() => return End::of(reason),
                // The other end has given the tunnel up by now.
                () = &mut slept => return End::Lost("the machine has slept".to_owned()),
                () = &mut others, if !others.is_terminated() => {}
                never = &mut port_forward => match never {},
                never = &mut renewal => match never {},
                event = events.message() => match event {
                    Ok(Some(TableEvent { event })) => {
                        match event.and_then(|event| parts.take(event)) {
                            Some(Event::Candidates(found)) => {
                                up.tunnel.set_candidates(addresses(&found.endpoints));
                            }
                            Some(event) => self.shared.apply(event),
                            // Part of a snapshot, or an event of a later version.
                            None => {}
                        }
                    }
                    Ok(None) => return End::Lost("the traffic manager ended the table".to_owned()),
                    Err(status) => {
                        return End::Lost(format!("the table broke: {}", status.message()));
                    }
                },
            }
        }
    }

    /// Forwards a port again whenever the byte stream ends under a living tunnel.
    async fn restore_port_forward(&self, up: &ActiveTunnel) -> std::convert::Infallible {
        let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
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
                    sleep(backoff.pause(fastrand::f64())).await;
                }
            }
        }
    }

    /// Ends the tunnel and the Session object, which `established` still owns.
    pub(super) async fn discard(&self, established: Established) {
        established.up.tunnel.close(CloseCode::Quit).await;
        self.delete(&established.session).await;
    }

    async fn delete(&self, session: &SessionRef) {
        let cluster = self.login.cluster();
        self.objects.delete(&cluster, &session.name).await;
    }

    /// Deletes the Session objects of attempts that ended while the API server did not answer.
    async fn delete_others(&self, session: &SessionRef) {
        let mut names = self.objects.names();
        names.remove(&session.name);
        self.objects.delete_all(&self.login.cluster(), names).await;
    }

    /// Deletes the Session objects of this connection, except `unanswered`; returns those for which the
    /// API server had no answer.
    pub(super) async fn delete_all(&self, unanswered: &BTreeSet<String>) -> BTreeSet<String> {
        let names = &self.objects.names() - unanswered;

        self.objects.delete_all(&self.login.cluster(), names).await
    }
}

impl Established {
    pub(super) fn up(&self) -> ActiveTunnel {
        self.up.clone()
    }
}

impl End {
    fn of(reason: ClosedReason) -> Self {
        match reason {
            ClosedReason::Peer {
                code: CloseCode::Deleted,
                ..
            } => Self::Deleted,
            reason => Self::Lost(reason.to_string()),
        }
    }
}

fn addresses(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let address = |it: &Endpoint| {
        let port = u16::try_from(it.port).ok()?;
        Some(SocketAddr::new(table::address(&it.address)?, port))
    };

    endpoints.iter().filter_map(address).collect()
}

/// Waits for the UDP path, without which `--transport udp` carries no data.
async fn wait_for_udp(tunnel: &Tunnel) -> Result<(), Fault> {
    let mut path = tunnel.path();
    let answers = timeout(
        UDP_TIMEOUT,
        path.wait_for(|status| status.path == PathKind::Udp),
    );
    if matches!(answers.await, Ok(Ok(_))) {
        return Ok(());
    }
    let reason = tunnel.path().borrow().reason.clone();
    Err(Fault::new(
        FaultKind::Unavailable,
        format!(
            "the traffic manager does not answer by UDP, and --transport udp allows nothing else \
             ({reason}): use --transport auto, or open the way to its UDP port"
        ),
    ))
}

async fn bounded<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, Fault> {
    match timeout(CONTROL_TIMEOUT, call).await {
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

fn temporary(message: &str) -> Fault {
    Fault::new(FaultKind::TemporaryFailure, format!("{message}: try again"))
}

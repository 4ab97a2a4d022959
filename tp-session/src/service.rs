//! The session's answers to `tp`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status as GrpcStatus};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{
        ConnectEvent, ConnectRequest, Connected, ListRequest, ListResponse, QuitRequest,
        QuitResponse, Status, StatusRequest, VersionRequest, VersionResponse, Workload,
        connect_event::Event, session_server::Session,
    },
    tunnel::{ListWorkloadsRequest, WorkloadPort},
};

use super::{
    cluster::Place, connection::Connection, progress::Progress, root_link::RootLink, status,
};

mod same;

/// Progress that waits for a slow reader; when full, connecting waits with it.
const EVENTS: usize = 16;
const LIST_LIMIT: Duration = Duration::from_secs(8);
/// For an attempt that nobody wants any more to undo what it has done.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
/// A session that nobody connects with ends.
const UNUSED: Duration = Duration::from_secs(30);

enum Phase {
    Idle {
        since: Instant,
        /// Why there is no connection any more; empty if there was none.
        reason: String,
    },
    Connecting(Attempt),
    Connected(Arc<Connection>),
    Ending,
}

#[derive(Clone, Default)]
struct Attempt {
    /// Cancelled when nobody wants it any more.
    unwanted: CancellationToken,
    /// Cancelled when it is over and has left nothing behind.
    over: CancellationToken,
}

/// Clones share the state.
#[derive(Clone)]
pub(super) struct Service {
    phase: Arc<Mutex<Phase>>,
    /// Cancelled when the process is to end.
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(stop: CancellationToken) -> Self {
        let phase = Phase::Idle {
            since: Instant::now(),
            reason: String::new(),
        };
        Self {
            phase: Arc::new(Mutex::new(phase)),
            stop,
        }
    }

    /// Ends a session that has no connection for long, and a connection that can go on no longer.
    pub(super) async fn supervise(&self) {
        loop {
            let connection = match &*self.phase.lock().await {
                Phase::Idle { since, .. } if since.elapsed() >= UNUSED => {
                    tracing::info!("Nobody connects: ending");
                    return;
                }
                Phase::Connected(connection) => Some(Arc::clone(connection)),
                Phase::Idle { .. } | Phase::Connecting(_) => None,
                Phase::Ending => return,
            };
            let pause = tokio::time::sleep(Duration::from_secs(1));
            match connection {
                None => pause.await,
                Some(connection) => tokio::select! {
                    () = pause => {}
                    reason = connection.lost() => {
                        tracing::info!(%reason, "Connection lost");
                        self.leave(&connection, reason).await;
                    }
                },
            }
        }
    }

    /// `connection` is lost.
    async fn leave(&self, connection: &Arc<Connection>, reason: String) {
        connection.close().await;
        let mut phase = self.phase.lock().await;
        if matches!(&*phase, Phase::Connected(current) if Arc::ptr_eq(current, connection)) {
            *phase = Phase::Idle {
                since: Instant::now(),
                reason,
            };
        }
    }

    /// Takes the connection down, whatever its phase.
    pub(super) async fn end(&self) {
        let phase = std::mem::replace(&mut *self.phase.lock().await, Phase::Ending);
        match phase {
            Phase::Connected(connection) => connection.close().await,
            Phase::Connecting(attempt) => {
                attempt.unwanted.cancel();
                if timeout(ATTEMPT_LIMIT, attempt.over.cancelled())
                    .await
                    .is_err()
                {
                    tracing::info!("The attempt to connect did not end in time");
                }
            }
            Phase::Idle { .. } | Phase::Ending => {}
        }
    }

    async fn connected(&self) -> Result<Arc<Connection>, Fault> {
        match &*self.phase.lock().await {
            Phase::Connected(connection) => Ok(Arc::clone(connection)),
            Phase::Connecting(_) => Err(Fault::new(
                FaultKind::TemporaryFailure,
                "the session is still connecting: try again",
            )),
            Phase::Idle { .. } | Phase::Ending => Err(Fault::new(
                FaultKind::NotConnected,
                "not connected: run `tp connect` first",
            )),
        }
    }

    /// Begins an attempt, or says that there is nothing to do.
    async fn begin(&self, request: &ConnectRequest) -> Result<Begun, Fault> {
        let mut phase = self.phase.lock().await;
        let connection = match &*phase {
            Phase::Idle { .. } => {
                let attempt = Attempt::default();
                *phase = Phase::Connecting(attempt.clone());
                return Ok(Begun::Attempt(attempt));
            }
            Phase::Connecting(_) => {
                return Err(Fault::new(
                    FaultKind::TemporaryFailure,
                    "another `tp connect` is under way: wait for it, or end it with `tp quit`",
                ));
            }
            Phase::Connected(connection) => Arc::clone(connection),
            Phase::Ending => {
                return Err(Fault::new(
                    FaultKind::TemporaryFailure,
                    "the session is ending: try again",
                ));
            }
        };
        // The API server may have to be asked, and `tp quit` must not wait for it.
        drop(phase);
        same::check(&connection, request).await?;

        Ok(Begun::Already(connected(&connection.place, true)))
    }

    async fn attempt(
        self,
        request: ConnectRequest,
        attempt: Attempt,
        event_tx: mpsc::Sender<Result<ConnectEvent, GrpcStatus>>,
    ) {
        let _over = attempt.over.drop_guard();
        let progress = Progress::new(event_tx.clone());
        let opened = Connection::open(request, &progress).await;
        let result = match opened {
            Ok(connection) => {
                let mut phase = self.phase.lock().await;
                let is_wanted =
                    matches!(&*phase, Phase::Connecting(_)) && !attempt.unwanted.is_cancelled();
                if is_wanted {
                    let answer = connected(&connection.place, false);
                    *phase = Phase::Connected(connection);
                    Ok(answer)
                } else {
                    drop(phase);
                    connection.close().await;
                    Err(Fault::new(FaultKind::Failed, "the attempt was ended"))
                }
            }
            Err(fault) => {
                let mut phase = self.phase.lock().await;
                if matches!(&*phase, Phase::Connecting(_)) {
                    *phase = Phase::Idle {
                        since: Instant::now(),
                        reason: String::new(),
                    };
                }
                Err(fault)
            }
        };
        let event = match result {
            Ok(connected) => Ok(ConnectEvent {
                event: Some(Event::Connected(connected)),
            }),
            Err(fault) => Err(fault.into()),
        };
        // Whoever asked may have gone; the connection stays all the same.
        drop(event_tx.send(event).await);
    }
}

enum Begun {
    Attempt(Attempt),
    Already(Connected),
}

fn connected(place: &Place, already: bool) -> Connected {
    Connected {
        context: place.context.clone(),
        server: place.server.clone(),
        namespace: place.namespace.clone(),
        already,
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<ConnectEvent, GrpcStatus>> + Send>>;

#[tonic::async_trait]
impl Session for Service {
    type ConnectStream = Events;

    async fn connect(
        &self,
        request: Request<ConnectRequest>,
    ) -> Result<Response<Events>, GrpcStatus> {
        let request = request.into_inner();
        let (event_tx, event_rx) = mpsc::channel(EVENTS);
        match self.begin(&request).await? {
            Begun::Already(connected) => {
                let event = ConnectEvent {
                    event: Some(Event::Connected(connected)),
                };
                // The queue is empty.
                drop(event_tx.try_send(Ok(event)));
            }
            // Owned by the phase: `end` cancels it, and every step of it has a bound.
            Begun::Attempt(attempt) => {
                tokio::spawn(self.clone().attempt(request, attempt, event_tx));
            }
        }

        Ok(Response::new(Box::pin(ReceiverStream::new(event_rx))))
    }

    async fn quit(&self, _: Request<QuitRequest>) -> Result<Response<QuitResponse>, GrpcStatus> {
        self.end().await;
        self.stop.cancel();

        Ok(Response::new(QuitResponse {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Status>, GrpcStatus> {
        let connection = match &*self.phase.lock().await {
            Phase::Connected(connection) => Arc::clone(connection),
            Phase::Connecting(_) => return Ok(Response::new(bare("connecting", ""))),
            Phase::Idle { reason, .. } => {
                return Ok(Response::new(bare("disconnected", reason)));
            }
            Phase::Ending => {
                return Ok(Response::new(bare("disconnected", "the session is ending")));
            }
        };

        Ok(Response::new(status::of(&connection).await))
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListResponse>, GrpcStatus> {
        let connection = self.connected().await?;
        let namespace = match request.into_inner().namespace {
            empty if empty.is_empty() => connection.place.namespace.clone(),
            namespace => namespace,
        };
        let Some(mut up) = connection.shared.up() else {
            let reason = connection.shared.reason.borrow().clone();
            let message = format!("there is no tunnel at the moment: {reason}");
            return Err(Fault::new(FaultKind::Unavailable, message).into());
        };
        let call = up
            .manager
            .list_workloads(ListWorkloadsRequest { namespace });
        let listed = match timeout(LIST_LIMIT, call).await {
            Ok(Ok(listed)) => listed.into_inner(),
            Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
                return Err(Fault::new(FaultKind::NoPermission, status.message()).into());
            }
            Ok(Err(status)) => {
                return Err(Fault::new(FaultKind::Unavailable, status.message()).into());
            }
            Err(_) => {
                let message = "the traffic manager does not list the workloads in time";
                return Err(Fault::new(FaultKind::Unavailable, message).into());
            }
        };
        let workloads = listed
            .workloads
            .into_iter()
            .map(|it| Workload {
                kind: it.kind,
                name: it.name,
                namespace: it.namespace,
                ready: it.ready,
                desired: it.desired,
                ports: it.ports.iter().map(port).collect(),
            })
            .collect();

        Ok(Response::new(ListResponse { workloads }))
    }

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, GrpcStatus> {
        let mut versions = VersionResponse {
            session: tp_proto::VERSION.to_owned(),
            ..VersionResponse::default()
        };
        if let Ok(connection) = self.connected().await {
            versions.root_daemon.clone_from(&connection.daemon_version);
            versions.manager = connection
                .shared
                .up()
                .map(|up| up.version)
                .unwrap_or_default();
        } else if let Ok((_, version, _)) = RootLink::connect().await {
            versions.root_daemon = version;
        }

        Ok(Response::new(versions))
    }
}

fn bare(state: &str, reason: &str) -> Status {
    Status {
        state: state.to_owned(),
        reason: reason.to_owned(),
        session_pid: std::process::id(),
        ..Status::default()
    }
}

fn port(port: &WorkloadPort) -> String {
    let protocol = &port.protocol;
    match port.name.as_str() {
        "" => format!("{}/{protocol}", port.port),
        name => format!("{name}:{}/{protocol}", port.port),
    }
}

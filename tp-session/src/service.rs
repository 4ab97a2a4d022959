//! The session's answers to `tp`.

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status as GrpcStatus};
use tp_ipc::PeerPresence;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{
        CheckRequest, CheckResponse, ConnectEvent, ConnectRequest, Ending, EnvironmentRequest,
        EnvironmentResponse, InterceptEvent, InterceptRequest, KeepFilesRequest, KeepFilesResponse,
        LeaveRequest, LeaveResponse, ListRequest, ListResponse, NamespacesRequest,
        NamespacesResponse, QuitRequest, QuitResponse, Status, StatusRequest, VersionRequest,
        VersionResponse, connect_event::Event, session_server::Session,
    },
};

use super::{
    check,
    connection::{self, Connection},
    intercepts::InterceptEvents,
    progress::{Progress, Stage},
    root_link::RootLink,
    status,
};
use users::{AttemptHandle, Existing, Phase, State};

mod compatibility;
mod environment;
#[cfg(test)]
mod tests;
mod users;
mod workloads;

/// The most events that wait for a slow reader; beyond it, the sender waits.
const MAX_QUEUED_EVENTS: usize = 16;
/// A session that nobody connects with ends.
const UNUSED_EXIT_AFTER: Duration = Duration::from_secs(30);

/// Clones share the state.
#[derive(Clone)]
pub(super) struct Service {
    state: Arc<Mutex<State>>,
    /// Cancelled when the process is to end.
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new())),
            stop,
        }
    }

    /// Ends a session that has had no connection for long, and a connection that is lost.
    pub(super) async fn supervise(&self) {
        loop {
            let mut state = self.state.lock().await;
            let connection = match &state.phase {
                Phase::Idle { since, .. }
                    if since.elapsed() >= UNUSED_EXIT_AFTER && !state.is_used() =>
                {
                    tracing::info!("Nobody connects: ending");
                    // Later requests are sent to another session.
                    state.end();
                    self.stop.cancel();
                    return;
                }
                Phase::Connected { connection, .. } => Some(Arc::clone(connection)),
                Phase::Idle { .. } | Phase::Connecting(_) | Phase::Lost { .. } => None,
                Phase::Ending => break,
            };
            drop(state);
            let pause = tokio::time::sleep(Duration::from_secs(1));
            match connection {
                None => pause.await,
                Some(connection) => tokio::select! {
                    () = pause => {}
                    reason = connection.lost() => {
                        tracing::info!(%reason, "Connection lost");
                        self.lose(&connection, reason).await;
                    }
                },
            }
        }
        self.stop.cancelled().await;
    }

    /// Takes down `connection`, which is lost.
    async fn lose(&self, connection: &Arc<Connection>, reason: String) {
        let Some(down) = self.state.lock().await.lose(connection, reason) else {
            return;
        };
        connection.close().await;
        self.state.lock().await.set_idle();
        down.cancel();
    }

    /// Takes the connection down, whatever its phase.
    pub(super) async fn end(&self) {
        let remaining = self.state.lock().await.end();
        self.finish(remaining).await;
    }

    async fn connected(&self) -> Result<Arc<Connection>, Fault> {
        match &self.state.lock().await.phase {
            Phase::Connected { connection, .. } => Ok(Arc::clone(connection)),
            Phase::Connecting(_) => Err(Fault::new(
                FaultKind::TemporaryFailure,
                "the session is still connecting: try again",
            )),
            Phase::Idle { .. } | Phase::Lost { .. } | Phase::Ending => Err(Fault::new(
                FaultKind::NotConnected,
                "not connected: run `tp connect` first",
            )),
        }
    }

    /// Makes the peer a user until its connection ends.
    async fn enter(&self, presence: &PeerPresence) {
        if !self.state.lock().await.enter(presence.id()) {
            return;
        }
        let (this, presence) = (self.clone(), presence.clone());
        // Ends with the connection that it watches.
        tokio::spawn(async move {
            presence.gone().await;
            this.leave(presence.id(), false).await;
        });
    }

    /// Removes a user; returns whether the session goes on for others.
    async fn leave(&self, user: u64, withdraws: bool) -> bool {
        let Some(remaining) = self.state.lock().await.leave(user, withdraws) else {
            return true;
        };
        self.finish(remaining).await;

        false
    }

    /// Takes down what is left and lets the process end, or waits for another caller that does so.
    async fn finish(&self, remaining: Phase) {
        if !matches!(remaining, Phase::Ending) {
            let stop = self.stop.clone().drop_guard();
            // Every step has a bound. In its own task, because a request ends with the `tp` that made it.
            tokio::spawn(async move {
                remaining.take_down().await;
                drop(stop);
            });
        }
        self.stop.cancelled().await;
    }

    /// Sends the steps and the result of a request to `events`.
    async fn answer(self, user: u64, request: ConnectRequest, events: Events) {
        let result = tokio::select! {
            // The caller has gone.
            () = events.0.closed() => return,
            result = self.obtain(user, &request, &events) => result,
        };
        match result {
            Ok(event) => events.send(event).await,
            Err(fault) => events.fail(fault).await,
        }
    }

    /// The connection that `request` asks for: the existing one, that of the attempt under way, or a new
    /// one.
    async fn obtain(
        &self,
        user: u64,
        request: &ConnectRequest,
        events: &Events,
    ) -> Result<Event, Fault> {
        loop {
            let existing = self.state.lock().await.join(user, request);
            match existing {
                Existing::Nothing(handle) => {
                    let stage = handle.stage.subscribe();
                    // The end of its phase waits for it, and every step of it has a bound.
                    tokio::spawn(self.clone().attempt(request.clone(), handle));
                    return follow(stage, events).await;
                }
                Existing::Same(stage) => {
                    let event = follow(stage, events).await?;
                    // The names are the same, but perhaps the shell is not.
                    compatibility::check(&*self.connected().await?, request).await?;
                    return Ok(event);
                }
                Existing::Other(mut stage) => {
                    events.step("waiting for another `tp connect`").await;
                    // An attempt that broke off is over as well.
                    drop(stage.wait_for(Stage::is_over).await);
                    // A root daemon that ends with its last session may have ended with it: the
                    // caller must start one again.
                    if self.state.lock().await.is_idle() {
                        return Ok(Event::Ending(Ending {}));
                    }
                }
                Existing::Connection(connection) => {
                    events.step("comparing with the connection there is").await;
                    // The API server may have to be asked, and `tp quit` must not wait for it.
                    compatibility::check(&connection, request).await?;
                    if self.state.lock().await.keep(user, &connection, request) {
                        return Ok(Event::Connected(status::connected(&connection, true)));
                    }
                }
                Existing::Lost(down) => {
                    down.cancelled().await;
                }
                Existing::End => return Ok(Event::Ending(Ending {})),
            }
        }
    }

    async fn attempt(self, request: ConnectRequest, handle: AttemptHandle) {
        let _over = handle.over.drop_guard();
        let progress = Progress::new(handle.stage.clone());
        let opened = Connection::open(request, &progress, &handle.unwanted);
        let opened = AssertUnwindSafe(opened).catch_unwind().await;
        let opened = opened.unwrap_or_else(|_| Err(broken_off()));
        let result = match opened {
            Ok(connection) => {
                let wanted = self.state.lock().await.succeed(&connection);
                match wanted {
                    Some(()) => Ok(status::connected(&connection, false)),
                    None => {
                        connection.close().await;
                        self.state.lock().await.fail();
                        Err(connection::attempt_ended())
                    }
                }
            }
            Err(fault) => {
                self.state.lock().await.fail();
                Err(fault)
            }
        };
        // The connection stays even if nobody follows the stage any more.
        handle.stage.send_replace(Stage::Over(result));
    }
}

/// The events for one caller of Connect.
struct Events(mpsc::Sender<Result<ConnectEvent, GrpcStatus>>);

impl Events {
    async fn send(&self, event: Event) {
        let event = Ok(ConnectEvent { event: Some(event) });
        // A listener that has gone is noticed elsewhere.
        drop(self.0.send(event).await);
    }

    async fn step(&self, phrase: &str) {
        self.send(Event::Progress(phrase.to_owned())).await;
    }

    async fn fail(&self, fault: Fault) {
        drop(self.0.send(Err(fault.into())).await);
    }
}

/// Sends the steps of an attempt until it is over.
async fn follow(mut stage: watch::Receiver<Stage>, events: &Events) -> Result<Event, Fault> {
    loop {
        let current = stage.borrow_and_update().clone();
        match current {
            Stage::Begun => {}
            Stage::Step(phrase) => events.step(&phrase).await,
            Stage::Over(result) => return result.map(Event::Connected),
        }
        if stage.changed().await.is_err() {
            return Err(broken_off());
        }
    }
}

fn broken_off() -> Fault {
    let message = "the attempt broke off: see the session's log";
    Fault::new(FaultKind::Failed, message)
}

/// The peer that sent a request; the listener adds it to every request.
fn presence<T>(request: &Request<T>) -> Result<PeerPresence, GrpcStatus> {
    let presence = request.extensions().get().cloned();

    presence.ok_or_else(|| GrpcStatus::internal("a request came from nowhere"))
}

type EventStream = Pin<Box<dyn Stream<Item = Result<ConnectEvent, GrpcStatus>> + Send>>;

#[tonic::async_trait]
impl Session for Service {
    type ConnectStream = EventStream;

    async fn connect(
        &self,
        request: Request<ConnectRequest>,
    ) -> Result<Response<EventStream>, GrpcStatus> {
        let presence = presence(&request)?;
        self.enter(&presence).await;
        let (event_tx, event_rx) = mpsc::channel(MAX_QUEUED_EVENTS);
        // Ends with its listener.
        tokio::spawn(
            self.clone()
                .answer(presence.id(), request.into_inner(), Events(event_tx)),
        );

        Ok(Response::new(Box::pin(ReceiverStream::new(event_rx))))
    }

    async fn quit(
        &self,
        request: Request<QuitRequest>,
    ) -> Result<Response<QuitResponse>, GrpcStatus> {
        let user = presence(&request)?.id();
        let (root_daemon_ends, mut intercepts) = match &self.state.lock().await.phase {
            Phase::Connected { connection, .. } => {
                (connection.root_daemon_ends, connection.intercepts.names())
            }
            _ => (false, Vec::new()),
        };
        let goes_on = if request.into_inner().unless_used {
            self.leave(user, true).await
        } else {
            let remaining = self.state.lock().await.end();
            self.finish(remaining).await;
            false
        };
        if goes_on {
            intercepts.clear();
        }

        Ok(Response::new(QuitResponse {
            goes_on,
            root_daemon_ends,
            intercepts,
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Status>, GrpcStatus> {
        let connection = match &self.state.lock().await.phase {
            Phase::Connected { connection, .. } => Arc::clone(connection),
            Phase::Connecting(_) => return Ok(Response::new(bare("connecting", ""))),
            Phase::Idle { reason, .. } => {
                return Ok(Response::new(bare("disconnected", reason)));
            }
            Phase::Lost { reason, .. } => {
                return Ok(Response::new(bare("disconnected", reason)));
            }
            Phase::Ending => {
                return Ok(Response::new(bare("disconnected", "the session is ending")));
            }
        };

        Ok(Response::new(status::of(&connection).await))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, GrpcStatus> {
        let connection = self.connected().await.ok();

        Ok(Response::new(check::of(connection.as_deref()).await))
    }

    type InterceptStream = Pin<Box<dyn Stream<Item = Result<InterceptEvent, GrpcStatus>> + Send>>;

    async fn intercept(
        &self,
        request: Request<InterceptRequest>,
    ) -> Result<Response<Self::InterceptStream>, GrpcStatus> {
        let connection = self.connected().await?;
        let caller = presence(&request)?.pid();
        let (event_tx, event_rx) = mpsc::channel(MAX_QUEUED_EVENTS);
        let intercepts = Arc::clone(&connection.intercepts);
        let namespace = connection.destination.namespace.clone();
        // Ends with its listener, or with the connection.
        tokio::spawn(intercepts.answer(
            request.into_inner(),
            namespace,
            caller,
            InterceptEvents(event_tx),
        ));

        Ok(Response::new(Box::pin(ReceiverStream::new(event_rx))))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, GrpcStatus> {
        let connection = self.connected().await?;
        let name = request.into_inner().name;
        // It has a bound. In its own task, because a request ends with the `tp` that made it.
        let left = tokio::spawn(async move { connection.intercepts.leave(&name).await });
        let left = left.await.map_err(|_| broken_off())??;

        Ok(Response::new(LeaveResponse {
            intercept: Some(left),
        }))
    }

    async fn environment(
        &self,
        request: Request<EnvironmentRequest>,
    ) -> Result<Response<EnvironmentResponse>, GrpcStatus> {
        let connection = self.connected().await?;
        let environment = environment::of(&connection, request.into_inner()).await?;

        Ok(Response::new(environment))
    }

    async fn keep_files(
        &self,
        request: Request<KeepFilesRequest>,
    ) -> Result<Response<KeepFilesResponse>, GrpcStatus> {
        let connection = self.connected().await?;
        let paths = connection
            .intercepts
            .keep_files(request.into_inner())
            .await?;

        Ok(Response::new(KeepFilesResponse { paths }))
    }

    async fn namespaces(
        &self,
        _: Request<NamespacesRequest>,
    ) -> Result<Response<NamespacesResponse>, GrpcStatus> {
        let connection = self.connected().await.ok();
        let namespaces = connection.map(|it| it.shared.namespaces());

        Ok(Response::new(NamespacesResponse {
            namespaces: namespaces.unwrap_or_default(),
        }))
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<ListResponse>, GrpcStatus> {
        let connection = self.connected().await?;
        let request = request.into_inner();
        let namespaces = match request.namespace {
            _ if request.all_namespaces => connection.shared.namespaces(),
            empty if empty.is_empty() => vec![connection.destination.namespace.clone()],
            namespace => vec![namespace],
        };
        let workloads =
            workloads::listed(&connection.shared, namespaces, request.all_namespaces).await?;

        Ok(Response::new(ListResponse { workloads }))
    }

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, GrpcStatus> {
        let mut versions = VersionResponse {
            session: tp_core::VERSION.to_owned(),
            ..VersionResponse::default()
        };
        if let Ok(connection) = self.connected().await {
            versions.root_daemon.clone_from(&connection.daemon_version);
            versions.manager = connection
                .shared
                .up()
                .map(|up| up.version)
                .unwrap_or_default();
        } else if let Ok(link) = RootLink::visit().await {
            versions.root_daemon = link.version;
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

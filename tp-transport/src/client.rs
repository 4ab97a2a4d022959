//! The session's end of the tunnel.

mod driver;
mod error;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TokioRuntime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tp_core::path::{PathChoice, PathKind, monitor::CandidateStatus};
use tp_process::sync::lock;
use tp_proto::tunnel::Outcome;

use crate::{
    codes::CloseCode,
    congestion::PathEpoch,
    credit::Ledger,
    flow::{self, Dialed, FlowError, FlowIo, Intercepted},
    framed::Link,
    keys::{Identity, KeyHash, SessionRef},
    mux::{Mux, client::ClientSide, udp::Udp},
    preface,
    probe::ProbeKeys,
    quic::{
        CLIENT_CREDIT, FlowLimit, LOGICAL_SERVER, SERVER_NAME, client_transport, endpoint_config,
    },
    status::{ClosedReason, PathStatus, TunnelStats},
    tls,
};
use driver::{Command, Driver, Parts, SurveyRequest};
use error::handshake_error;
pub use error::{ConnectError, OpenError};

/// Of a handshake, from the preface to the manager's welcome.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a dial's wait for UDP where no other path is allowed.
const UDP_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the wait until the manager has learned that the tunnel is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// Probes of an address that does not answer, and the time between them and before the last answer
/// is read.
const SURVEY_ROUNDS: u32 = 6;
const SURVEY_INTERVAL: Duration = Duration::from_millis(150);
/// Commands that may wait for the driver.
const MAX_COMMANDS: usize = 16;
/// Connections that may wait for [`Tunnel::accept`].
const MAX_UNACCEPTED: usize = 64;

/// The parameters of [`Tunnel::connect`].
pub struct TunnelConfig {
    /// The key that this end proves.
    pub identity: Identity,
    /// The `Session` object that was made for that key.
    pub session: SessionRef,
    /// The key that the manager must prove.
    pub manager_key: KeyHash,
    /// The paths that may be used.
    pub choice: PathChoice,
}

/// The tunnel; clones share it. It ends with [`Tunnel::close`] or its last clone.
#[derive(Clone)]
pub struct Tunnel {
    inner: Arc<Inner>,
}

struct Inner {
    session: SessionRef,
    choice: PathChoice,
    connection: Connection,
    endpoint: Endpoint,
    mux: Arc<Mux<ClientSide>>,
    path: watch::Receiver<PathStatus>,
    commands: mpsc::Sender<Command>,
    /// Cancelled before the connection is closed from here for want of an answer.
    gone: CancellationToken,
    link_task: Mutex<AbortOnDropHandle<()>>,
    ledger: Arc<Ledger>,
    /// Boxed, because a channel allocates 32 slots at once.
    intercepted: tokio::sync::Mutex<mpsc::Receiver<Box<Intercepted>>>,
    _opens: AbortOnDropHandle<()>,
    _driver: AbortOnDropHandle<()>,
    _credit: AbortOnDropHandle<()>,
    _flush: AbortOnDropHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connection.close(CloseCode::Quit.into(), b"");
    }
}

impl Tunnel {
    /// Handshake over `link`, a byte stream to the manager; takes ten seconds at
    /// most.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Refused`] if the manager does not admit the session, by its answer on the byte
    /// stream or by closing the connection; [`ConnectError::AnotherKey`] if its key is not the pinned
    /// one; the others if there is no handshake at all.
    pub async fn connect(
        link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        config: TunnelConfig,
    ) -> Result<Self, ConnectError> {
        timeout(HANDSHAKE_TIMEOUT, Self::handshake(link, config))
            .await
            .unwrap_or(Err(ConnectError::TimedOut(HANDSHAKE_TIMEOUT)))
    }

    async fn handshake(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        config: TunnelConfig,
    ) -> Result<Self, ConnectError> {
        let TunnelConfig {
            identity,
            session,
            manager_key,
            choice,
        } = config;
        let (crypto, another_key) = tls::client_config(&identity, &session, manager_key)?;
        let udp = match choice {
            PathChoice::StreamOnly => None,
            PathChoice::Auto | PathChoice::UdpOnly => {
                Some(Udp::unbound().map_err(ConnectError::Endpoint)?)
            }
        };
        let epoch = Arc::new(PathEpoch::default());
        let link = Link::new(LOGICAL_SERVER);
        let (side, replies) = ClientSide::new(Arc::clone(&epoch), Arc::clone(&link));
        let mux = Mux::new(side, udp);
        let flush = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&mux).flush()));
        let socket = Arc::clone(&mux);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config(), None, socket, runtime)
            .map_err(ConnectError::Endpoint)?;
        let mut client_config = ClientConfig::new(Arc::new(crypto));
        client_config.transport_config(client_transport(&epoch, choice));

        let (link_task, answer) = spawn_link(&mux, &link, stream, &session);
        let connecting = endpoint
            .connect_with(client_config, LOGICAL_SERVER, SERVER_NAME)
            .map_err(|error| ConnectError::Handshake(error.into()))?;
        let welcomed = async {
            let error = |error| handshake_error(error, another_key.get());
            let connection = connecting.await.map_err(error)?;
            // The manager judges the certificate after this end believes itself connected.
            let mut welcome = connection.accept_uni().await.map_err(error)?;
            if welcome.read_chunk(1, true).await.is_err() {
                return Err(ConnectError::LinkEnded);
            }
            Ok(connection)
        };
        let connection = tokio::select! {
            connection = welcomed => connection?,
            error = refusal(answer, &link) => return Err(error),
        };
        mux.side().set_keys(ProbeKeys::of_connection(&connection));

        let gone = CancellationToken::new();
        let (commands, commands_rx) = mpsc::channel(MAX_COMMANDS);
        let (driver, path) = Driver::new(Parts {
            choice,
            endpoint: endpoint.clone(),
            connection: connection.clone(),
            mux: Arc::clone(&mux),
            epoch,
            gone: gone.clone(),
        });
        let driver = tokio::spawn(driver.run(commands_rx, replies));
        let ledger = Ledger::new(connection.clone(), CLIENT_CREDIT);
        let credit = tokio::spawn(Arc::clone(&ledger).run());
        let (opens, intercepted) = spawn_opens(&connection, &ledger);

        Ok(Self {
            inner: Arc::new(Inner {
                session,
                choice,
                connection,
                endpoint,
                mux,
                path,
                commands,
                gone,
                link_task: Mutex::new(link_task),
                ledger,
                intercepted: tokio::sync::Mutex::new(intercepted),
                _opens: opens,
                _driver: AbortOnDropHandle::new(driver),
                _credit: AbortOnDropHandle::new(credit),
                _flush: flush,
            }),
        })
    }

    /// Opens the control stream; [`FlowIo::into_channel`] makes it a gRPC channel.
    ///
    /// # Errors
    ///
    /// [`OpenError::Closed`], [`OpenError::Flow`], or [`OpenError::Refused`] by the manager.
    pub async fn open_control(&self) -> Result<FlowIo, OpenError> {
        let (send, recv) = self.open().await?;
        let (io, verdict) = self.or_closed(flow::open_control(send, recv).await).await?;
        match verdict.outcome() {
            Outcome::Connected => Ok(io),
            _ => Err(OpenError::Refused(verdict.reason)),
        }
    }

    /// Asks the manager to connect to `target` and waits for its verdict; the caller sets a limit.
    /// Dropping the future also cancels the dial at the far side.
    ///
    /// # Errors
    ///
    /// [`OpenError::Closed`], [`OpenError::Flow`], or [`OpenError::NoUdp`] after five seconds. A
    /// target that refuses is no error: see [`Dialed::Refused`].
    pub async fn dial(&self, target: SocketAddr) -> Result<Dialed, OpenError> {
        self.dial_as(target, false).await
    }

    /// As [`Tunnel::dial`], to the container where this session intercepts the port. An older manager
    /// makes no difference.
    ///
    /// # Errors
    ///
    /// Those of [`Tunnel::dial`].
    pub async fn dial_container(&self, target: SocketAddr) -> Result<Dialed, OpenError> {
        self.dial_as(target, true).await
    }

    async fn dial_as(&self, target: SocketAddr, to_container: bool) -> Result<Dialed, OpenError> {
        self.wait_for_path().await?;
        let (send, recv) = self.open().await?;
        let ledger = &self.inner.ledger;
        let dialed = flow::open_dial(send, recv, target, to_container, ledger).await;

        self.or_closed(dialed).await
    }

    /// The next connection to a port that the session intercepts; `None` once the tunnel has ended.
    /// While nobody accepts, some wait and the others are refused.
    pub async fn accept(&self) -> Option<Intercepted> {
        loop {
            let intercepted = *self.inner.intercepted.lock().await.recv().await?;
            let path = self.inner.path.borrow().clone();
            if self.inner.choice != PathChoice::UdpOnly || path.path == PathKind::Udp {
                return Some(intercepted);
            }
            let Intercepted { pending, .. } = intercepted;
            pending
                .refuse(Outcome::NetworkUnreachable, &path.reason)
                .await;
        }
    }

    async fn open(&self) -> Result<(quinn::SendStream, quinn::RecvStream), OpenError> {
        let opened = self.inner.connection.open_bi().await;

        opened.map_err(|error| OpenError::Closed(self.reason(error)))
    }

    /// Adds the reason to the error of a lost tunnel.
    async fn or_closed<T>(&self, result: Result<T, FlowError>) -> Result<T, OpenError> {
        match result {
            Ok(value) => Ok(value),
            Err(FlowError::TunnelLost) => Err(OpenError::Closed(self.closed().await)),
            Err(error) => Err(error.into()),
        }
    }

    /// With [`PathChoice::UdpOnly`], no flow may begin before UDP is proven.
    async fn wait_for_path(&self) -> Result<(), OpenError> {
        if self.inner.choice != PathChoice::UdpOnly {
            return Ok(());
        }
        let mut path = self.inner.path.clone();
        let proven = path.wait_for(|status| status.path == PathKind::Udp);
        let proven = timeout(UDP_TIMEOUT, proven)
            .await
            .map(|proven| proven.map(drop));
        match proven {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(OpenError::Closed(self.closed().await)),
            Err(_) => Err(OpenError::NoUdp(self.inner.path.borrow().reason.clone())),
        }
    }

    /// Sets the replica's UDP addresses, best first. Probing starts in the background.
    pub fn set_candidates(&self, candidates: Vec<SocketAddr>) {
        self.command(Command::Candidates(candidates));
    }

    /// Probes every UDP address of the replica, also those that are not used; takes up to a second.
    /// Empty where UDP is not to be used.
    pub async fn survey_candidates(&self) -> Vec<CandidateStatus> {
        let mut found = Vec::new();
        for round in 0..SURVEY_ROUNDS {
            if round > 0 {
                sleep(SURVEY_INTERVAL).await;
            }
            let (sender, receiver) = oneshot::channel();
            self.command(Command::Survey(SurveyRequest {
                again: round > 0,
                found: sender,
            }));
            let Ok(known) = receiver.await else {
                break;
            };
            found = known;
            if found.iter().all(|it| it.rtt.is_some()) && round > 0 {
                break;
            }
        }

        found
    }

    /// Resolves when the byte stream has ended; a new one may be given to
    /// [`Tunnel::replace_link`].
    pub async fn link_ended(&self) {
        self.inner.mux.side().link().ended().cancelled().await;
    }

    /// Replaces the byte stream by a new one to the same replica. The old one serves until
    /// the manager has answered on the new one, within ten seconds.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Refused`], [`ConnectError::LinkEnded`] or [`ConnectError::TimedOut`]; the tunnel
    /// is then unchanged.
    pub async fn replace_link(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), ConnectError> {
        let inner = &self.inner;
        let link = Link::new(LOGICAL_SERVER);
        let (task, answer) = spawn_link(&inner.mux, &link, stream, &inner.session);
        match timeout(HANDSHAKE_TIMEOUT, answer).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(reason))) => return Err(ConnectError::Refused(reason)),
            Ok(Err(_)) => return Err(ConnectError::LinkEnded),
            Err(_) => return Err(ConnectError::TimedOut(HANDSHAKE_TIMEOUT)),
        }
        inner.mux.side().replace_link(link);
        *lock(&inner.link_task) = task;
        self.command(Command::LinkReplaced);

        Ok(())
    }

    /// The Session that the tunnel was opened for.
    pub fn session(&self) -> &SessionRef {
        &self.inner.session
    }

    /// The path that carries the flows, and the reason.
    pub fn path(&self) -> watch::Receiver<PathStatus> {
        self.inner.path.clone()
    }

    /// Counters since the tunnel began.
    pub fn stats(&self) -> TunnelStats {
        let inner = &self.inner;
        TunnelStats::of(&inner.connection, &inner.ledger, inner.mux.udp())
    }

    /// Resolves when the tunnel has ended.
    pub async fn closed(&self) -> ClosedReason {
        let error = self.inner.connection.closed().await;

        self.reason(error)
    }

    /// Closes the tunnel and waits, with a limit, until the manager knows.
    pub async fn close(&self, code: CloseCode) {
        self.inner.connection.close(code.into(), b"");
        if timeout(CLOSE_TIMEOUT, self.inner.endpoint.wait_idle())
            .await
            .is_err()
        {
            tracing::debug!("Manager may not know yet that the tunnel is closed");
        }
        self.inner.mux.side().link().end();
    }

    fn reason(&self, error: ConnectionError) -> ClosedReason {
        match (self.inner.gone.is_cancelled(), error) {
            (true, ConnectionError::LocallyClosed) => ClosedReason::ReplicaGone,
            (_, error) => error.into(),
        }
    }

    fn command(&self, command: Command) {
        if self.inner.commands.try_send(command).is_err() {
            tracing::debug!("Tunnel closed or behind; command dropped");
        }
    }
}

/// Reads what the manager opens.
fn spawn_opens(
    connection: &Connection,
    ledger: &Arc<Ledger>,
) -> (AbortOnDropHandle<()>, mpsc::Receiver<Box<Intercepted>>) {
    let (connection, ledger) = (connection.clone(), Arc::clone(ledger));
    let (flows, intercepted) = mpsc::channel(MAX_UNACCEPTED);
    let opens = tokio::spawn(async move {
        flow::read_opens(&connection, &ledger, FlowLimit::of_client(), flows).await;
    });

    (AbortOnDropHandle::new(opens), intercepted)
}

/// Sends the preface and runs a byte stream in a task. The manager's answer to the preface comes
/// with the receiver.
fn spawn_link(
    mux: &Arc<Mux<ClientSide>>,
    link: &Arc<Link>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    session: &SessionRef,
) -> (AbortOnDropHandle<()>, oneshot::Receiver<Result<(), String>>) {
    let (answer, answer_rx) = oneshot::channel();
    let guard = EndOnDrop(Arc::clone(link));
    let (mux, link, session) = (Arc::clone(mux), Arc::clone(link), session.clone());
    let task = tokio::spawn(async move {
        let _guard = guard;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            preface::write(&mut writer, &session).await?;
            link.run_writer(writer).await
        };
        let read = async {
            let answered = match preface::read_answer(&mut reader).await {
                Ok(answered) => answered,
                Err(error) => {
                    link.end();
                    return Err(std::io::Error::other(error));
                }
            };
            let is_refused = answered.is_err();
            // Fails if the connect was given up.
            let _ = answer.send(answered);
            if is_refused {
                link.end();
                return Ok(());
            }
            // Any byte that arrives proves the stream; its probes need no opening.
            link.run_reader(reader, |batch| mux.deliver(&link, batch, |_| {}))
                .await
        };
        let (written, read) = tokio::join!(write, read);
        tracing::debug!(?written, ?read, "Byte stream of the tunnel ended");
    });

    (AbortOnDropHandle::new(task), answer_rx)
}

/// Ends a link with its task, however that ends.
struct EndOnDrop(Arc<Link>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Resolves only if the preface is refused or the link ends first.
async fn refusal(answer: oneshot::Receiver<Result<(), String>>, link: &Link) -> ConnectError {
    match answer.await {
        Ok(Err(reason)) => ConnectError::Refused(reason),
        Ok(Ok(())) => {
            link.ended().cancelled().await;
            ConnectError::LinkEnded
        }
        Err(_) => ConnectError::LinkEnded,
    }
}

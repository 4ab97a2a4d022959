//! Asks `tp-agentd`, over one connection, by one thread: its calls block. When the connection ends,
//! all redirects that were made over it are gone.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{
    SocketFlags,
    sockopt::{Timeout, set_socket_timeout},
};
use tokio::sync::{mpsc, oneshot, watch};
use tp_agent_api::{AgentRefusal, AgentReply, AgentRequest, PROTOCOL};
use tp_core::VERSION;
use tp_packet::{MAX_PACKET, connect, receive, send, socket};

/// Requests that wait; more wait in their tasks.
const QUEUE: usize = 64;
/// Of the wait for a reply: finding a pod looks at all processes of the node.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Why a request was not answered as it should be.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AgentdError {
    #[error("tp-agentd does not serve: {0}")]
    Away(String),
    #[error("{message}")]
    Refused { kind: AgentRefusal, message: String },
}

/// A reply, what came with it, and the number of the connection it came over.
pub(crate) struct Replied {
    pub(crate) reply: AgentReply,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) connection: u64,
}

type Replying = oneshot::Sender<Result<Replied, AgentdError>>;

/// Clones share the connection.
#[derive(Clone)]
pub(crate) struct Agentd {
    requests: mpsc::Sender<(AgentRequest, Replying)>,
    /// The number of the connection; another one than a redirect's means that it is gone.
    connection: watch::Receiver<u64>,
}

impl Agentd {
    /// Starts the thread, which ends, with all redirects, when all clones are gone.
    pub(crate) fn start(path: PathBuf) -> io::Result<Self> {
        let (requests, received) = mpsc::channel(QUEUE);
        let (numbers, connection) = watch::channel(0);
        let client = Client {
            path,
            connected: None,
            next_attempt: None,
            numbers,
        };
        thread::Builder::new()
            .name("agentd".to_owned())
            .spawn(move || client.serve(received))?;

        Ok(Self {
            requests,
            connection,
        })
    }

    pub(crate) async fn request(&self, request: AgentRequest) -> Result<Replied, AgentdError> {
        let ended = || AgentdError::Away("its connection is closed".to_owned());
        let (replying, reply) = oneshot::channel();
        let sent = self.requests.send((request, replying)).await;
        sent.map_err(|_| ended())?;
        let replied = reply.await.map_err(|_| ended())??;
        if let AgentReply::Refused { kind, message } = replied.reply {
            return Err(AgentdError::Refused { kind, message });
        }

        Ok(replied)
    }

    /// Resolves when the connection with this number has ended.
    pub(crate) async fn ended(&self, number: u64) {
        let mut connection = self.connection.clone();
        // Without a sender, the thread has ended.
        let _ = connection.wait_for(|current| *current != number).await;
    }
}

struct Client {
    path: PathBuf,
    connected: Option<OwnedFd>,
    next_attempt: Option<Instant>,
    numbers: watch::Sender<u64>,
}

impl Client {
    fn serve(mut self, mut requests: mpsc::Receiver<(AgentRequest, Replying)>) {
        while let Some((request, replying)) = requests.blocking_recv() {
            let replied = self.request(&request);
            if let Err(Ok(unwanted)) = replying.send(replied) {
                self.undo(&unwanted.reply);
            }
        }
    }

    fn request(&mut self, request: &AgentRequest) -> Result<Replied, AgentdError> {
        let away = |error: io::Error| AgentdError::Away(error.to_string());
        self.connect().map_err(away)?;
        let Some(socket) = &self.connected else {
            return Err(away(io::ErrorKind::NotConnected.into()));
        };
        let exchanged = exchange(socket, request);
        if exchanged.is_err() {
            tracing::warn!("Connection to tp-agentd ended, and all redirects with it");
            self.connected = None;
            self.numbers.send_modify(|number| *number += 1);
        }
        let (reply, fds) = exchanged.map_err(away)?;

        Ok(Replied {
            reply,
            fds,
            connection: *self.numbers.borrow(),
        })
    }

    fn connect(&mut self) -> io::Result<()> {
        if self.connected.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if self.next_attempt.is_some_and(|next| now < next) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.next_attempt = Some(now + RETRY_INTERVAL);
        let connected = greeted(&self.path);
        if let Err(error) = &connected {
            tracing::warn!(%error, path = %self.path.display(), "Cannot connect to tp-agentd");
        }
        self.connected = Some(connected?);

        Ok(())
    }

    /// Nobody waits for the redirect any more.
    fn undo(&mut self, reply: &AgentReply) {
        if let AgentReply::Redirected { redirect, .. } = *reply {
            let release = AgentRequest::Release { redirect };
            if let Err(error) = self.request(&release) {
                tracing::debug!(%error, "Cannot release a redirect that nobody wants");
            }
        }
    }
}

fn greeted(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(SocketFlags::empty())?;
    set_socket_timeout(&socket, Timeout::Send, Some(REPLY_TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(REPLY_TIMEOUT))?;
    connect(&socket, path)?;
    let hello = AgentRequest::Hello {
        version: VERSION.to_owned(),
        protocol: PROTOCOL,
    };
    match exchange(&socket, &hello)?.0 {
        AgentReply::Hello { version, protocol } if protocol == PROTOCOL => {
            tracing::info!(%version, "Connection to tp-agentd is up");
            Ok(socket)
        }
        AgentReply::Hello { version, .. } => Err(io::Error::other(format!(
            "it is of version {version}, this is {VERSION}: both must be of one image"
        ))),
        reply => Err(io::Error::other(format!("it answers wrongly: {reply:?}"))),
    }
}

fn exchange(socket: &OwnedFd, request: &AgentRequest) -> io::Result<(AgentReply, Vec<OwnedFd>)> {
    send(socket, request, &[])?;
    let mut buffer = vec![0; MAX_PACKET];
    let packet = receive(socket, &mut buffer)?;
    if packet.bytes.is_empty() || packet.is_truncated {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }

    Ok((serde_json::from_slice(packet.bytes)?, packet.fds))
}

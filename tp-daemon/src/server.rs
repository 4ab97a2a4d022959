//! Accepts connections, counts them, and ends them in order.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        Shutdown, SocketFlags, accept_with, shutdown,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    connection::Connection,
    context::{Context, Lifetime},
    peer::{Audience, MAX_CONNECTIONS_PER_UID, PeerProcess},
    request_error::RequestError,
    wait::pause,
};

/// Served connections at a time; refused ones are counted apart.
const MAX_CONNECTIONS: usize = 64;
/// Refusals at a time; further connections are closed without a reply.
const MAX_REFUSALS: usize = 16;
const MAX_REFUSALS_PER_UID: usize = 4;
const ACCEPT_QUEUE: usize = 8;
/// Between attempts to accept while the machine lacks descriptors or memory.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A peer that has not read its reply by then loses its connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// For dropping all bundles at the end. The others are dropped with the process.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Under sudo: for the session of the `tp connect` that started this daemon, which was killed if none
/// comes. Longer than `tp connect` waits.
const FIRST_SESSION_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct RootServer {
    acceptor: Acceptor,
    admission: Audience,
    context: Arc<Context>,
    connections: BTreeMap<u64, ConnectionHandle>,
    next_id: u64,
    ended_tx: mpsc::Sender<u64>,
    ended_rx: mpsc::Receiver<u64>,
}

struct ConnectionHandle {
    /// The user of the peer, if it is known.
    uid: Option<u32>,
    is_refused: bool,
    socket: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

enum Input {
    Accepted(OwnedFd),
    Ended(u64),
    Stop,
    /// The listener accepts no connections any more.
    Broken,
}

impl RootServer {
    pub(crate) fn new(
        listener: OwnedFd,
        admission: Audience,
        context: Context,
    ) -> anyhow::Result<Self> {
        let (ended_tx, ended_rx) = mpsc::channel(MAX_CONNECTIONS + MAX_REFUSALS);

        Ok(Self {
            acceptor: Acceptor::start(listener)?,
            admission,
            context: Arc::new(context),
            connections: BTreeMap::new(),
            next_id: 0,
            ended_tx,
            ended_rx,
        })
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut result = Ok(());
        let first_session_due = Instant::now() + FIRST_SESSION_TIMEOUT;
        while !self.is_over() {
            let waits_for_first = self.context.lifetime == Lifetime::WithLastSession
                && self.connections.is_empty()
                && !self.context.has_served.load(Ordering::Relaxed);
            let input = tokio::select! {
                _ = terminate.recv() => Input::Stop,
                _ = interrupt.recv() => Input::Stop,
                ended = self.ended_rx.recv() => Input::Ended(ended.expect("we hold a sender")),
                accepted = self.acceptor.accepted_rx.recv() => {
                    accepted.map_or(Input::Broken, Input::Accepted)
                }
                () = sleep_until(first_session_due), if waits_for_first => Input::Stop,
            };
            match input {
                Input::Accepted(socket) => self.admit(socket),
                Input::Ended(id) => self.reap(id),
                Input::Stop => break,
                Input::Broken => {
                    result = Err(anyhow::anyhow!("cannot accept connections any more"));
                    break;
                }
            }
        }
        self.close().await;

        result
    }

    fn is_over(&self) -> bool {
        self.context.lifetime == Lifetime::WithLastSession
            && self.connections.is_empty()
            && self.context.has_served.load(Ordering::Relaxed)
    }

    fn admit(&mut self, socket: OwnedFd) {
        let socket = Arc::new(socket);
        let started = set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT))
            .map_err(std::io::Error::from)
            .and_then(|()| match PeerProcess::of(&socket) {
                Ok(peer) => match self.check(&peer) {
                    Ok(()) => self.serve(socket, peer),
                    Err(refusal) => self.refuse(socket, Some(peer.uid), refusal),
                },
                Err(error) => self.refuse(socket, None, error.into()),
            });
        if let Err(error) = started {
            tracing::debug!(%error, "Cannot serve a connection");
        }
    }

    fn check(&self, peer: &PeerProcess) -> Result<(), RequestError> {
        self.admission.check(peer)?;
        if self.count(false, Some(peer.uid)) >= MAX_CONNECTIONS_PER_UID {
            return Err(RequestError::unsupported(format!(
                "this user has {MAX_CONNECTIONS_PER_UID} sessions already, as many as one may \
                 have: end one with `tp quit`"
            )));
        }
        if self.count(false, None) >= MAX_CONNECTIONS {
            return Err(RequestError::unsupported(format!(
                "the users of this machine have {MAX_CONNECTIONS} sessions, as many as there may \
                 be: one of them must run `tp quit` first"
            )));
        }

        Ok(())
    }

    /// The number of served or of refused connections, of one user or of all.
    fn count(&self, is_refused: bool, uid: Option<u32>) -> usize {
        self.connections
            .values()
            .filter(|it| it.is_refused == is_refused && (uid.is_none() || it.uid == uid))
            .count()
    }

    fn serve(&mut self, socket: Arc<OwnedFd>, peer: PeerProcess) -> std::io::Result<()> {
        let uid = peer.uid;
        let connection = Connection::new(Arc::clone(&socket), peer, Arc::clone(&self.context));

        self.start(socket, Some(uid), false, move || connection.serve())
    }

    fn refuse(
        &mut self,
        socket: Arc<OwnedFd>,
        uid: Option<u32>,
        refusal: RequestError,
    ) -> std::io::Result<()> {
        tracing::debug!(reason = %refusal, "Refusing a connection");
        let of_uid = uid.map_or(0, |uid| self.count(true, Some(uid)));
        if self.count(true, None) >= MAX_REFUSALS || of_uid >= MAX_REFUSALS_PER_UID {
            return Ok(());
        }
        let refused = Arc::clone(&socket);

        self.start(socket, uid, true, move || {
            Connection::refuse(&refused, refusal)
        })
    }

    fn start(
        &mut self,
        socket: Arc<OwnedFd>,
        uid: Option<u32>,
        is_refused: bool,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        let ended_tx = self.ended_tx.clone();
        let thread = thread::Builder::new()
            .name(format!("connection-{id}"))
            .spawn(move || {
                let _ended = SendOnDrop { id, ended_tx };
                work();
            })?;
        self.connections.insert(
            id,
            ConnectionHandle {
                uid,
                is_refused,
                socket,
                thread,
            },
        );

        Ok(())
    }

    fn reap(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if connection.thread.join().is_err() {
            tracing::error!(id, "Connection's thread panicked");
        }
    }

    /// Ends every connection as if its peer had closed it, and waits for the machine to be restored.
    async fn close(&mut self) {
        for connection in self.connections.values() {
            // Fails only if the peer is gone already.
            let _ = shutdown(&connection.socket, Shutdown::Both);
        }
        let due = Instant::now() + CLOSE_TIMEOUT;
        while !self.connections.is_empty() {
            match timeout_at(due, self.ended_rx.recv()).await {
                Ok(Some(id)) => self.reap(id),
                Ok(None) | Err(_) => {
                    let left = self.connections.len();
                    tracing::warn!(left, "Connections did not end in time");
                    return;
                }
            }
        }
    }
}

/// Reports the end of a connection also when its thread panics.
struct SendOnDrop {
    id: u64,
    ended_tx: mpsc::Sender<u64>,
}

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        // The channel holds one message per connection; it is closed once the server has ended.
        let _ = self.ended_tx.try_send(self.id);
    }
}

/// Waits for connections on a thread of its own; ends when it is dropped.
struct Acceptor {
    listener: Arc<OwnedFd>,
    accepted_rx: mpsc::Receiver<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn start(listener: OwnedFd) -> anyhow::Result<Self> {
        let listener = Arc::new(listener);
        // When it is full, peers wait in the backlog of the socket.
        let (accepted_tx, accepted_rx) = mpsc::channel(ACCEPT_QUEUE);
        let thread = thread::Builder::new().name("acceptor".to_owned()).spawn({
            let listener = Arc::clone(&listener);
            move || accept_all(&listener, &accepted_tx)
        })?;

        Ok(Self {
            listener,
            accepted_rx,
            thread: Some(thread),
        })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.accepted_rx.close();
        // Wakes the thread up; fails only if the socket does not listen any more.
        let _ = shutdown(&self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("Acceptor panicked");
        }
    }
}

fn accept_all(listener: &OwnedFd, accepted_tx: &mpsc::Sender<OwnedFd>) {
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                if accepted_tx.blocking_send(socket).is_err() {
                    return;
                }
            }
            // The peer has closed the connection, or a signal arrived.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            // Temporary, and without effect on served connections. The end is still noticed: a
            // socket that does not listen any more fails with another error.
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                tracing::warn!(%error, "Cannot accept a connection at the moment");
                pause(ACCEPT_RETRY_INTERVAL);
            }
            Err(error) => {
                tracing::debug!(%error, "Accepting ends");
                return;
            }
        }
    }
}

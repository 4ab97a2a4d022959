//! The manager's end of the tunnel.

use std::{io, net::UdpSocket, sync::Arc, time::Duration};

use quinn::{Connection, Endpoint, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tp_core::path::PathKind;

use crate::{
    admission::Admission,
    codes::CloseCode,
    credit::Ledger,
    flow::{Accepted, read_opens},
    keys::{Identity, KeyError, SessionRef},
    mux::{
        Mux,
        drivers::Drivers,
        server::{PeerPaths, ServerLink, ServerSide},
        udp::Udp,
    },
    preface::{self, PrefaceError},
    quic::{FlowLimit, endpoint_config, is_link_address},
    status::PathStatus,
    tls,
};

mod handshake;
mod peer;
mod strangers;

use handshake::Acceptor;
pub use peer::Peer;
use strangers::Strangers;

/// Of the wait for the client's preface, or for its reading of the answer.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the wait for a session that is not known yet, and between two queries for it.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(2);
const KNOWN_INTERVAL: Duration = Duration::from_millis(25);
/// Of the wait until the client proves on a byte stream that it has the session's key: by a
/// handshake, or by a probe on a stream that replaces another.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions that may wait for [`TunnelServer::accept`].
const MAX_UNACCEPTED: usize = 64;
/// A session whose client is silent for so long is gone. A laptop may sleep meanwhile.
pub const SESSION_GONE_AFTER: Duration = Duration::from_secs(120);
const SILENCE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Least time between two checks of the path that a client uses.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(1);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No certificate can be made of the key.
    #[error("cannot use the manager's key")]
    Key(#[from] KeyError),
    /// The UDP socket cannot be used.
    #[error("cannot set the QUIC endpoint up")]
    Endpoint(#[source] io::Error),
}

/// Why a byte stream is not served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It does not begin with the preface, or with one of another version.
    #[error("the first bytes of the stream are not tp's")]
    NotOurs,
    /// For five seconds it was silent where data had to come, or accepted no data.
    #[error("the stream is silent")]
    TimedOut,
    /// [`Admission::known`] refuses the session, for this reason.
    #[error("the session is refused: {0}")]
    Refused(String),
    /// Reading or writing failed.
    #[error("the stream failed")]
    Io(#[from] io::Error),
    /// Other streams take all of the server's capacity.
    #[error("the server has as many streams as it serves")]
    TooMany,
    /// Ten seconds passed without a handshake or a genuine probe on it.
    #[error("nobody proved in time that the stream is the session's")]
    Unproven,
    /// It had not named a session when there were too many such streams.
    #[error("other streams needed its room before it named a session")]
    Evicted,
}

/// Serves any number of sessions over one UDP socket and their byte streams.
pub struct TunnelServer {
    mux: Arc<Mux<ServerSide>>,
    admission: Arc<dyn Admission>,
    endpoint: Endpoint,
    strangers: Strangers,
    peers: Mutex<mpsc::Receiver<Peer>>,
    _accepting: AbortOnDropHandle<()>,
    _flush: AbortOnDropHandle<()>,
}

impl TunnelServer {
    /// Without `udp`, all sessions stay on their byte streams.
    ///
    /// # Errors
    ///
    /// [`BindError::Key`] if no certificate can be made of `identity`, [`BindError::Endpoint`] if
    /// `udp` cannot be used.
    pub fn bind(
        udp: Option<UdpSocket>,
        identity: Identity,
        admission: Arc<dyn Admission>,
    ) -> Result<Arc<Self>, BindError> {
        let tls = Arc::new(tls::server_config(&identity)?);
        let udp = udp
            .map(Udp::from_socket)
            .transpose()
            .map_err(BindError::Endpoint)?;
        let mux = Mux::new(ServerSide::default(), udp);
        // Without one quinn accepts nothing; every handshake gets a configuration of its own.
        let crypto = Arc::clone(&tls);
        let config = ServerConfig::with_crypto(crypto);
        let socket = Arc::clone(&mux);
        let runtime = Arc::new(Drivers);
        let endpoint =
            Endpoint::new_with_abstract_socket(endpoint_config(), Some(config), socket, runtime)
                .map_err(BindError::Endpoint)?;
        let (peers_tx, peers) = mpsc::channel(MAX_UNACCEPTED);
        let acceptor = Acceptor {
            mux: Arc::clone(&mux),
            endpoint: endpoint.clone(),
            tls,
            admission: Arc::clone(&admission),
            peers: peers_tx,
        };

        let flush = tokio::spawn(Arc::clone(&mux).flush());

        Ok(Arc::new(Self {
            mux,
            admission,
            endpoint,
            strangers: Strangers::default(),
            peers: Mutex::new(peers),
            _accepting: AbortOnDropHandle::new(tokio::spawn(acceptor.run())),
            _flush: AbortOnDropHandle::new(flush),
        }))
    }

    /// Serves a byte stream that was accepted, until it ends.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]: each ends this stream alone.
    pub async fn attach(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), AttachError> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let stranger = self.strangers.enter();
        let session = tokio::select! {
            () = stranger.evicted() => return Err(AttachError::Evicted),
            // Boxed, so that an attached stream does not keep the memory of its preface.
            session = Box::pin(self.read_preface(&mut reader, &mut writer)) => session?,
        };
        // From here on it counts against the session's limit.
        drop(stranger);
        let Some(link) = self.mux.side().add_link(session) else {
            let reason = "the traffic manager serves as many streams as it can";
            Box::pin(refuse(&mut reader, &mut writer, reason)).await;
            return Err(AttachError::TooMany);
        };
        let mux = Arc::clone(&self.mux);
        let attached = Attached { link, mux };
        match timeout(PREFACE_TIMEOUT, preface::write_answer(&mut writer, Ok(()))).await {
            Err(_) => return Err(AttachError::TimedOut),
            Ok(answered) => answered?,
        }

        let link = &attached.link;
        let read = link.link.run_reader(reader, |batch| {
            let side = self.mux.side();
            let on_probe = |probe: &[u8]| side.link_probe(link, probe);
            let bytes = self.mux.deliver(&link.link, batch, on_probe);
            if bytes > 0 {
                side.link_data(link);
            }
            bytes
        });
        let (read, written, proven) =
            tokio::join!(read, link.link.run_writer(writer), end_when_useless(link));

        proven.and(Ok(read.and(written)?))
    }

    /// Reads the session that a stream claims, and checks that it exists.
    async fn read_preface(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<SessionRef, AttachError> {
        let session = match timeout(PREFACE_TIMEOUT, preface::read(reader)).await {
            Err(_) => return Err(AttachError::TimedOut),
            Ok(Err(PrefaceError::Io(error))) => return Err(error.into()),
            Ok(Err(PrefaceError::Malformed | PrefaceError::Version(_))) => {
                return Err(AttachError::NotOurs);
            }
            Ok(Ok(session)) => session,
        };
        if let Err(reason) = self.known(&session).await {
            refuse(reader, writer, &reason).await;
            return Err(AttachError::Refused(reason));
        }

        Ok(session)
    }

    async fn known(&self, session: &SessionRef) -> Result<(), String> {
        let end = Instant::now() + KNOWN_TIMEOUT;
        loop {
            match self.admission.known(session) {
                Ok(()) => return Ok(()),
                Err(refusal) if refusal.retry && Instant::now() < end => {
                    sleep(KNOWN_INTERVAL).await
                }
                Err(refusal) => return Err(refusal.reason),
            }
        }
    }

    /// The next session whose handshake is done and whose identity is verified; `None` once the
    /// server is closed.
    pub async fn accept(&self) -> Option<Peer> {
        self.peers.lock().await.recv().await
    }

    /// Closes every connection and waits, with a limit, until the clients know.
    pub async fn close(&self, code: CloseCode) {
        self.endpoint
            .close(code.into(), b"the traffic manager ends");
        if timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle())
            .await
            .is_err()
        {
            tracing::debug!("Some clients may not know yet that the server is closed");
        }
        self.mux.side().end_links();
    }
}

/// Removes a byte stream from the socket when dropped, however serving it ends.
struct Attached {
    link: Arc<ServerLink>,
    mux: Arc<Mux<ServerSide>>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.mux.side().remove_link(&self.link);
    }
}

/// Ends a byte stream that is not proven to be the session's in time, or whose connection has ended:
/// it counts against the limits.
async fn end_when_useless(link: &ServerLink) -> Result<(), AttachError> {
    let ended = link.link.ended();
    tokio::select! {
        () = link.proven() => {}
        () = ended.cancelled() => return Ok(()),
        () = sleep(PROOF_TIMEOUT) => {
            link.link.end();
            return Err(AttachError::Unproven);
        }
    }
    tokio::select! {
        () = link.orphaned() => {}
        () = ended.cancelled() => return Ok(()),
    }
    // The client's notice of the end may still be on its way.
    let _ = timeout(CLOSE_TIMEOUT, ended.cancelled()).await;
    link.link.end();

    Ok(())
}

/// Refuses a byte stream; `reason` is a sentence for the client's user.
async fn refuse(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    reason: &str,
) {
    let answer = preface::write_answer(writer, Err(reason));
    if let Ok(Ok(())) = timeout(PREFACE_TIMEOUT, answer).await {
        // So that the answer is read before the stream is reset.
        let _ = timeout(CLOSE_TIMEOUT, shutdown(reader, writer)).await;
    }
}

async fn shutdown(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    writer.shutdown().await?;
    let mut discarded = vec![0; 4096];
    while reader.read(&mut discarded).await? > 0 {}

    Ok(())
}

/// Removes a peer's probe keys from the socket when its connection is dropped.
struct Registered {
    mux: Arc<Mux<ServerSide>>,
    paths: Arc<PeerPaths>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.mux.side().remove_peer(&self.paths);
    }
}

/// Follows the client from path to path, reads what it opens, and notices when it has gone.
async fn keep(
    connection: Connection,
    ledger: Arc<Ledger>,
    registered: Registered,
    status: watch::Sender<PathStatus>,
    flows: mpsc::Sender<Box<Accepted>>,
) {
    let paths = &registered.paths;
    let follow = async {
        loop {
            paths.moved().await;
            follow_path(&connection, paths, &status);
            sleep(FOLLOW_INTERVAL).await;
        }
    };
    let watch_silence = async {
        loop {
            sleep(SILENCE_CHECK_INTERVAL).await;
            if u128::from(paths.silent_ms()) > SESSION_GONE_AFTER.as_millis() {
                tracing::debug!("Client gone without closing its connection");
                connection.close(CloseCode::Shutdown.into(), b"nothing was heard of you");
            }
        }
    };
    tokio::select! {
        _ = connection.closed() => {}
        () = follow => {}
        () = watch_silence => {}
        () = read_opens(&connection, &ledger, FlowLimit::of_server(), flows) => {}
        () = Arc::clone(&ledger).run() => {}
    }
    // The flows have ended; the registration lasts until the connection has.
    connection.closed().await;
}

fn follow_path(connection: &Connection, paths: &PeerPaths, status: &watch::Sender<PathStatus>) {
    let path = match is_link_address(&connection.remote_address()) {
        true => PathKind::Stream,
        false => PathKind::Udp,
    };
    if paths.epoch().path() != path {
        paths.epoch().switch(path);
    }
    let current = path_status(connection, paths);
    status.send_if_modified(|before| {
        let is_new = *before != current;
        *before = current;
        is_new
    });
}

fn path_status(connection: &Connection, paths: &PeerPaths) -> PathStatus {
    let path = paths.epoch().path();
    let reason = match path {
        PathKind::Stream => "the client uses the stream",
        PathKind::Udp => "",
    };

    PathStatus {
        path,
        reason: reason.into(),
        remote: Some(connection.remote_address()).filter(|_| path == PathKind::Udp),
        batching: "",
        switches: paths.epoch().switches(),
    }
}

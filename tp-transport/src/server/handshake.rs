//! The handshakes of sessions: a client on a byte stream must prove the key of the session that the
//! stream has named.

use std::{sync::Arc, time::Duration};

use quinn::{
    Connection, ConnectionError, Endpoint, Incoming, ServerConfig, crypto::rustls::QuicServerConfig,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{CLOSE_TIMEOUT, Peer, Registered, keep, path_status, peer::PeerInner};
use crate::{
    admission::Admission,
    codes::CloseCode,
    congestion::PathEpoch,
    credit::Ledger,
    keys::{KeyHash, SessionRef, certificate_key, certificate_session},
    mux::{
        Mux,
        server::{PeerPaths, ServerLink, ServerSide},
    },
    probe::ProbeKeys,
    quic::{self, SERVER_CREDIT, server_transport},
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once, one on each byte stream; further ones are ignored and repeated by their
/// clients.
const MAX_HANDSHAKES: usize = 1024;
const MAX_UNACCEPTED_FLOWS: usize = 256;

/// Accepts handshakes.
pub(super) struct Acceptor {
    pub(super) mux: Arc<Mux<ServerSide>>,
    pub(super) endpoint: Endpoint,
    pub(super) tls: Arc<QuicServerConfig>,
    pub(super) admission: Arc<dyn Admission>,
    pub(super) peers: mpsc::Sender<Peer>,
}

impl Acceptor {
    pub(super) async fn run(self) {
        let mut handshakes = JoinSet::new();
        while let Some(incoming) = self.endpoint.accept().await {
            while handshakes.try_join_next().is_some() {}
            let Some(link) = self.mux.side().link(&incoming.remote_address()) else {
                // Its byte stream has just ended.
                incoming.ignore();
                continue;
            };
            let permit = link.handshake();
            let Some(permit) = permit.filter(|_| handshakes.len() < MAX_HANDSHAKES) else {
                tracing::debug!("Too many handshakes at once");
                incoming.ignore();
                continue;
            };
            let handshake = Handshake {
                mux: Arc::clone(&self.mux),
                tls: Arc::clone(&self.tls),
                admission: Arc::clone(&self.admission),
            };
            let peers = self.peers.clone();
            handshakes.spawn(async move {
                let done = tokio::select! {
                    () = link.link.ended().cancelled() => return,
                    done = timeout(HANDSHAKE_TIMEOUT, handshake.run(&link, incoming)) => done,
                };
                match done {
                    Ok(Ok(peer)) => {
                        // Full: the client's time-out applies. Closed: the server ends.
                        let _ = peers.send(peer).await;
                        drop(permit);
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "Handshake failed");
                        drop(permit);
                        if matches!(error, HandshakeError::Refused(_)) {
                            // One stream gets one refusal, which may still be on its way.
                            let _ = timeout(CLOSE_TIMEOUT, link.link.ended().cancelled()).await;
                            link.link.end();
                        }
                    }
                    Err(_) => tracing::debug!("Handshake took too long"),
                }
            });
        }
    }
}

/// The reason for a failed handshake.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the session is refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// One handshake, and the check that its session is admitted.
struct Handshake {
    mux: Arc<Mux<ServerSide>>,
    tls: Arc<QuicServerConfig>,
    admission: Arc<dyn Admission>,
}

impl Handshake {
    async fn run(self, link: &ServerLink, incoming: Incoming) -> Result<Peer, HandshakeError> {
        let Self {
            mux,
            tls,
            admission,
        } = self;
        let epoch = Arc::new(PathEpoch::default());
        let mut config = ServerConfig::with_crypto(tls);
        config.transport_config(server_transport(&epoch));
        let connection = incoming.accept_with(Arc::new(config))?.await?;
        let key = match admitted(&connection, &link.session, &*admission) {
            Ok(key) => key,
            Err(reason) => {
                connection.close(CloseCode::NotAdmitted.into(), reason.as_bytes());
                return Err(HandshakeError::Refused(reason));
            }
        };
        quic::admit(&connection);

        let paths = PeerPaths::new(
            link.session.clone(),
            ProbeKeys::of_connection(&connection),
            epoch,
        );
        mux.side().add_peer(&paths, link);
        let (status, path) = watch::channel(path_status(&connection, &paths));
        let (flows, flows_rx) = mpsc::channel(MAX_UNACCEPTED_FLOWS);
        let registered = Registered {
            mux: Arc::clone(&mux),
            paths: Arc::clone(&paths),
        };
        let ledger = Ledger::new(connection.clone(), SERVER_CREDIT);
        let keeper = keep(
            connection.clone(),
            Arc::clone(&ledger),
            registered,
            status,
            flows,
        );
        let peer = Peer {
            inner: Arc::new(PeerInner {
                paths,
                session: link.session.clone(),
                key,
                connection: connection.clone(),
                ledger,
                path,
                flows: Mutex::new(flows_rx),
                mux: Arc::downgrade(&mux),
                _keeper: AbortOnDropHandle::new(tokio::spawn(keeper)),
            }),
        };
        // Tells the client that its certificate was accepted.
        let mut welcome = connection.open_uni().await?;
        if welcome.write_all(&[1]).await.is_ok() {
            let _ = welcome.finish();
        }

        Ok(peer)
    }
}

/// The key that the client has proven, if it is the key of the session that its byte stream has named
/// and the session is admitted. The error is a sentence for the client's user.
fn admitted(
    connection: &Connection,
    session: &SessionRef,
    admission: &dyn Admission,
) -> Result<KeyHash, String> {
    let (named, key) = proven(connection).expect("a certificate is mandatory and was parsed");
    if named != *session {
        tracing::debug!(%named, expected = %session, "Certificate of another session");
        return Err(format!("the certificate is not that of Session {session}"));
    }
    admission.admit(session, &key).map_err(|refusal| {
        tracing::debug!(%session, refusal.reason, "Session is not admitted");
        refusal.reason
    })?;

    Ok(key)
}

fn proven(connection: &Connection) -> Option<(SessionRef, KeyHash)> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let certificate = chain.first()?;

    Some((
        certificate_session(certificate).ok()?,
        certificate_key(certificate).ok()?,
    ))
}

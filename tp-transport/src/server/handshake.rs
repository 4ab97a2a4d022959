//! The handshakes of sessions: whoever comes by a byte stream has to show the key of the session that
//! the stream has named.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Peer, Registered, keep, path_status, peer::PeerInner};
use crate::{
    congestion::PathEpoch,
    credit::Ledger,
    keys::{KeyHash, certificate_key},
    mux::{
        Mux,
        server::{PeerPaths, ServerLink, ServerSide},
    },
    probe::ProbeKeys,
    quic::{SERVER_CREDIT, server_transport},
    tls::ServerTls,
};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at once, one on each byte stream; further ones are ignored and repeated by their
/// clients.
const MAX_HANDSHAKES: usize = 1024;
const MAX_UNACCEPTED_FLOWS: usize = 256;

/// Does the handshakes.
pub(super) struct Acceptor {
    pub(super) mux: Arc<Mux<ServerSide>>,
    pub(super) endpoint: Endpoint,
    pub(super) tls: Arc<ServerTls>,
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
            let (mux, tls) = (Arc::clone(&self.mux), Arc::clone(&self.tls));
            let peers = self.peers.clone();
            handshakes.spawn(async move {
                let _permit = permit;
                let handshake = tokio::select! {
                    () = link.link.ended().cancelled() => return,
                    handshake = timeout(HANDSHAKE_LIMIT, handshake(mux, &tls, &link, incoming)) => {
                        handshake
                    }
                };
                match handshake {
                    Ok(Ok(peer)) => {
                        // Full: the client's time-out applies. Closed: the server ends.
                        let _ = peers.send(peer).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "Handshake failed"),
                    Err(_) => tracing::debug!("Handshake took too long"),
                }
            });
        }
    }
}

async fn handshake(
    mux: Arc<Mux<ServerSide>>,
    tls: &ServerTls,
    link: &ServerLink,
    incoming: Incoming,
) -> Result<Peer, quinn::ConnectionError> {
    let epoch = Arc::new(PathEpoch::default());
    let mut config = ServerConfig::with_crypto(Arc::new(tls.config(&link.session)));
    config.transport_config(server_transport(&epoch));
    let connection = incoming.accept_with(Arc::new(config))?.await?;
    let key = peer_key(&connection).expect("a client certificate is mandatory and was parsed");

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

fn peer_key(connection: &Connection) -> Option<KeyHash> {
    let identity = connection.peer_identity()?;
    let chain = identity
        .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
        .ok()?;

    certificate_key(chain.first()?).ok()
}

//! The tunnel's end in the cluster: accepts sessions, and dials the targets that they may reach.

mod dial;
mod peer;
mod quota;
mod slots;
mod target;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) use quota::{Quotas, SessionQuota};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tp_process::sync::lock;
use tp_proto::allow::Allow;
use tp_transport::{CloseCode, Peer, SessionRef, TunnelServer, tune_link};

use crate::{
    access::Access, disconnected::Disconnected, grpc::Replica, intercepts::Intercepts,
    model::SharedModel, publish::Publisher, sessions::Sessions,
};

/// Eight for each of a thousand sessions, and some that belong to no session yet: the tunnel server
/// evicts the oldest of these.
const MAX_LINKS: usize = 9216;

/// The state shared by all connected sessions.
pub(crate) struct Gateway {
    pub(crate) server: Arc<TunnelServer>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) access: Arc<Access>,
    pub(crate) model: SharedModel,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) disconnected: Arc<Disconnected>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) allow: Vec<Allow>,
    pub(crate) connections: Connections,
    pub(crate) quotas: Quotas,
    pub(crate) intercepts: Arc<Intercepts>,
}

/// The newest connection of each session.
#[derive(Default)]
pub(crate) struct Connections(Mutex<BTreeMap<SessionRef, (u64, Peer)>>);

impl Connections {
    /// Adds a connection; returns its number, and the connection that it replaces.
    fn insert(&self, peer: &Peer) -> (u64, Option<Peer>) {
        let mut connected = lock(&self.0);
        let previous = connected.remove(peer.session());
        let number = previous.as_ref().map_or(0, |(number, _)| number + 1);
        connected.insert(peer.session().clone(), (number, peer.clone()));

        (number, previous.map(|(_, peer)| peer))
    }

    /// Removes a connection; returns whether it was the session's newest.
    fn remove(&self, session: &SessionRef, number: u64) -> bool {
        let mut connected = lock(&self.0);
        let last = connected
            .get(session)
            .is_some_and(|(newest, _)| *newest == number);
        if last {
            connected.remove(session);
        }

        last
    }
}

impl Gateway {
    /// Accepts byte streams at this port until it is aborted.
    pub(crate) async fn accept_links(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_LINKS));
        let mut links = JoinSet::new();
        loop {
            while links.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "Cannot accept a link");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::debug!("There are as many links as fit");
                continue;
            };
            let gateway = Arc::clone(&self);
            links.spawn(async move {
                let _permit = permit;
                gateway.link(stream).await;
            });
        }
    }

    async fn link(&self, stream: TcpStream) {
        if let Err(error) = tune_link(&stream) {
            tracing::debug!(%error, "Link keeps its delay");
        }
        if let Err(error) = self.server.attach(stream).await {
            tracing::debug!(%error, "Link ended");
        }
    }

    /// Serves sessions until the tunnel server is closed or this is aborted.
    pub(crate) async fn accept_peers(self: Arc<Self>) {
        let mut peers = JoinSet::new();
        while let Some(peer) = self.server.accept().await {
            while peers.try_join_next().is_some() {}
            let gateway = Arc::clone(&self);
            peers.spawn(async move { gateway.serve(peer).await });
        }
        // Each ends with its connection, which the server has closed.
        while peers.join_next().await.is_some() {}
    }

    async fn serve(&self, peer: Peer) {
        let session = peer.session().clone();
        let (number, previous) = self.connections.insert(&peer);
        if let Some(previous) = previous {
            previous.close(CloseCode::Shutdown, "the session has connected once more");
        }
        self.disconnected.remove(&session);
        tracing::info!(%session, "Session connected");

        // Boxed, so that a session does not keep the memory of a future that has ended.
        tokio::join!(
            peer::serve(self, &peer),
            Box::pin(self.publisher.write_status(&session, "Connected")),
        );

        let reason = peer.closed().await;
        tracing::info!(%session, %reason, "Session disconnected");
        if self.connections.remove(&session, number) {
            self.disconnected.insert(session.clone());
            self.publisher.write_status(&session, "Disconnected").await;
        }
    }
}

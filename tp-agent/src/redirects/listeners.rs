//! What the listeners of one pod accept.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tp_process::sync::lock;

use crate::{
    connections::{AcceptedConnection, CarriedConnections, Routes},
    places::Places,
};

/// While the machine lacks descriptors or memory.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Where accepted connections go.
pub(super) struct Doorway {
    pod: String,
    connections: Arc<CarriedConnections>,
    routes: Mutex<Routes>,
    /// Verifications that await a connection of ours, by its port.
    awaited: Mutex<BTreeMap<u16, mpsc::Sender<AcceptedConnection>>>,
    places: Arc<Places>,
}

impl Doorway {
    pub(super) fn new(pod: String, connections: Arc<CarriedConnections>) -> Self {
        Self {
            pod,
            connections,
            routes: Mutex::default(),
            awaited: Mutex::default(),
            places: Arc::new(Places::new()),
        }
    }

    pub(super) fn set_routes(&self, routes: Routes) {
        self.places.share(routes.keys().copied());
        *lock(&self.routes) = routes;
    }

    /// Hands connections from this port of anybody to `receiver`, until [`Self::forget`].
    pub(super) fn expect(&self, port: u16, receiver: mpsc::Sender<AcceptedConnection>) {
        lock(&self.awaited).insert(port, receiver);
    }

    pub(super) fn forget(&self, port: u16) {
        lock(&self.awaited).remove(&port);
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// Carries a connection if its port has an Intercept, and room; else, as where somebody connected to
    /// the listener's own port, it is reset.
    pub(super) fn route(&self, connection: AcceptedConnection) {
        let port = connection.local.port();
        let Some(route) = lock(&self.routes).get(&port).cloned() else {
            return;
        };
        let probes = route.probes.as_ref();
        let may_be_probe = probes.is_some_and(|it| it.nodes.contains(&connection.peer.ip()));
        match self.places.take(port, may_be_probe) {
            Some(place) => {
                let pod = self.pod.clone();
                self.connections.serve(connection, place, route, pod);
            }
            None => tracing::debug!(port, "Port has as many connections as fit: one is reset"),
        }
    }

    fn admit(&self, client: TcpStream) {
        let connection = match AcceptedConnection::new(client) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "Accepted connection has gone");
                return;
            }
        };
        let awaited = lock(&self.awaited).get(&connection.peer.port()).cloned();
        match awaited {
            Some(receiver) => {
                if let Err(error) = receiver.try_send(connection) {
                    self.route(error.into_inner());
                }
            }
            None => self.route(connection),
        }
    }

    async fn accept_all(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let accept = async {
            loop {
                self.places.room().await;
                match listener.accept().await {
                    Ok((client, _)) => self.admit(client),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "Cannot accept a connection at the moment");
                        sleep(RETRY_DELAY).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop.cancelled() => {}
        }
        // What the kernel gave to the listener before the end of the redirect.
        let Ok(listener) = listener.into_std() else {
            return;
        };
        while let Ok((client, _)) = listener.accept() {
            let adopted = client
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(client));
            if let Ok(client) = adopted {
                self.admit(client);
            }
        }
    }
}

/// The listeners of a pod at work.
pub(super) struct Listeners {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Listeners {
    pub(super) fn start(
        listeners: impl IntoIterator<Item = OwnedFd>,
        doorway: &Arc<Doorway>,
    ) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener.into())?;
            tasks.spawn(Arc::clone(doorway).accept_all(listener, stop.clone()));
        }

        Ok(Self { stop, tasks })
    }

    /// Accepts what there still is, and closes them.
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

//! A manager and an API server as far as intercepts need them.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use tp_process::sync::lock;
use tp_proto::tunnel::{
    EnvironmentRequest, EnvironmentResponse, FindWorkloadRequest, FindWorkloadResponse, FoundPort,
    HeldPort, HelloRequest, HelloResponse, InterceptState, InterceptStates, InterceptedPod,
    ListWorkloadsRequest, ListWorkloadsResponse, LocalIntercepts, ReadyPod, ResolveRequest,
    ResolveResponse, TableEvent, TakeOverRequest, TakeOverResponse, WatchTableRequest,
    manager_client::ManagerClient,
    manager_server::{Manager, ManagerServer},
};
use tp_transport::{
    Admission, Identity, KeyHash, PathChoice, Peer, Refusal, SessionRef, Tunnel, TunnelConfig,
    TunnelServer,
};

use super::super::shared::ActiveTunnel;

mod api;

pub(super) use api::{StagedApi, StagedCreation};

pub(super) struct Anybody;

impl Admission for Anybody {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Ok(())
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A tunnel, as the uplink opens it, and the manager's end of it.
pub(super) async fn connect(
    server: &Arc<TunnelServer>,
    manager_key: KeyHash,
    session: SessionRef,
    manager: Channel,
) -> (ActiveTunnel, Peer) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let attached = Arc::clone(server);
    tokio::spawn(async move { attached.attach(far).await });
    let config = TunnelConfig {
        identity: Identity::generate().unwrap(),
        session: session.clone(),
        manager_key,
        choice: PathChoice::StreamOnly,
    };
    let tunnel = Tunnel::connect(near, config).await.unwrap();
    let peer = server.accept().await.unwrap();
    let up = ActiveTunnel {
        tunnel,
        session,
        manager: ManagerClient::new(manager),
        replica: String::new(),
        version: String::new(),
    };

    (up, peer)
}

/// What a manager makes of the objects in the API server.
pub(super) trait StagedView: Send + Sync {
    /// Of the Intercept with this UID.
    fn state(&self, uid: &str) -> InterceptState;
    fn held(&self, workload: &str) -> Vec<HeldPort>;
    fn take_over(&self, workload: &str);
}

/// How long a staged manager takes to see that objects have changed.
const VIEW_INTERVAL: Duration = Duration::from_millis(50);

/// A manager that finds every workload, and says of each intercept that it hears of what `state` is,
/// or what it is in the `view`.
#[derive(Clone)]
pub(super) struct StagedManager {
    /// What the session said last.
    pub(super) heard: watch::Sender<LocalIntercepts>,
    pub(super) state: Arc<Mutex<InterceptState>>,
    pub(super) refusal: Arc<Mutex<Option<Status>>>,
    pub(super) ready: Arc<AtomicU32>,
    /// What leads to every workload that is found.
    pub(super) services: Arc<Mutex<Vec<String>>>,
    pub(super) view: Arc<Mutex<Option<Arc<dyn StagedView>>>>,
    /// Those that it names.
    pub(super) pods: Arc<Mutex<Vec<ReadyPod>>>,
}

impl StagedManager {
    pub(super) async fn start() -> (Self, Channel, AbortOnDropHandle<()>) {
        let pod = InterceptedPod {
            name: "web-1".to_owned(),
            is_redirected: true,
            ..InterceptedPod::default()
        };
        let state = InterceptState {
            pods: vec![pod],
            ..InterceptState::default()
        };
        let this = Self {
            heard: watch::Sender::default(),
            state: Arc::new(Mutex::new(state)),
            refusal: Arc::default(),
            ready: Arc::new(AtomicU32::new(1)),
            services: Arc::default(),
            view: Arc::default(),
            pods: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(ManagerServer::new(this.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { server.await.unwrap() });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();

        (
            this,
            endpoint.connect_lazy(),
            AbortOnDropHandle::new(serving),
        )
    }
}

impl StagedManager {
    fn view(&self) -> Option<Arc<dyn StagedView>> {
        lock(&self.view).clone()
    }

    fn state(&self, uid: &str) -> InterceptState {
        match self.view() {
            Some(view) => view.state(uid),
            None => InterceptState {
                uid: uid.to_owned(),
                ..lock(&self.state).clone()
            },
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Manager for StagedManager {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchTableStream = Answers<TableEvent>;

    async fn watch_table(
        &self,
        _: Request<WatchTableRequest>,
    ) -> Result<Response<Self::WatchTableStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resolve(
        &self,
        _: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_workloads(
        &self,
        _: Request<ListWorkloadsRequest>,
    ) -> Result<Response<ListWorkloadsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn find_workload(
        &self,
        request: Request<FindWorkloadRequest>,
    ) -> Result<Response<FindWorkloadResponse>, Status> {
        if let Some(refusal) = lock(&self.refusal).clone() {
            return Err(refusal);
        }
        let request = request.into_inner();
        let ports = request.ports.iter().map(|port| FoundPort {
            local: port.parse().unwrap(),
            port: 80,
            services: lock(&self.services).clone(),
            ..FoundPort::default()
        });

        Ok(Response::new(FindWorkloadResponse {
            kind: "Deployment".to_owned(),
            ports: ports.collect(),
            ready: self.ready.load(Ordering::Relaxed),
            held: self
                .view()
                .map_or_else(Vec::new, |it| it.held(&request.workload)),
            name: request.workload,
            pods: lock(&self.pods).clone(),
        }))
    }

    async fn take_over(
        &self,
        request: Request<TakeOverRequest>,
    ) -> Result<Response<TakeOverResponse>, Status> {
        if let Some(refusal) = lock(&self.refusal).clone() {
            return Err(refusal);
        }
        let TakeOverRequest { name, ports, .. } = request.into_inner();
        if let Some(view) = self.view() {
            view.take_over(&name);
        }
        let mut state = lock(&self.state);
        let (ended, held) = mem::take(&mut state.held)
            .into_iter()
            .partition(|it| ports.contains(&it.port));
        state.held = held;

        Ok(Response::new(TakeOverResponse { ended }))
    }

    async fn read_environment(
        &self,
        _: Request<EnvironmentRequest>,
    ) -> Result<Response<EnvironmentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type ServeInterceptsStream = Answers<InterceptStates>;

    async fn serve_intercepts(
        &self,
        request: Request<Streaming<LocalIntercepts>>,
    ) -> Result<Response<Self::ServeInterceptsStream>, Status> {
        let mut said = request.into_inner();
        let (states, of_states) = watch::channel(InterceptStates::default());
        let this = self.clone();
        tokio::spawn(async move {
            let mut local = LocalIntercepts::default();
            loop {
                // Objects change without a word of the session.
                let said = timeout(VIEW_INTERVAL, said.message()).await;
                let is_new = match said {
                    Ok(Ok(Some(said))) => {
                        local = said;
                        true
                    }
                    Ok(_) => return,
                    Err(_) if this.view().is_none() => continue,
                    Err(_) => false,
                };
                let intercepts = local.intercepts.iter().map(|it| this.state(&it.uid));
                let intercepts = intercepts.collect();
                states.send_replace(InterceptStates { intercepts });
                if is_new {
                    this.heard.send_replace(local.clone());
                }
            }
        });

        Ok(Response::new(Box::pin(WatchStream::new(of_states).map(Ok))))
    }
}

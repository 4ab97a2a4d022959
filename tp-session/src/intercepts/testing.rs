//! A manager and an API server as far as intercepts need them.

use std::{
    collections::BTreeMap,
    fs, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use tp_process::sync::lock;
use tp_proto::{
    local::ConnectRequest,
    tunnel::{
        FindWorkloadRequest, FindWorkloadResponse, FoundPort, HelloRequest, HelloResponse,
        InterceptState, InterceptStates, InterceptedPod, ListWorkloadsRequest,
        ListWorkloadsResponse, LocalIntercepts, ReadyPod, ResolveRequest, ResolveResponse,
        TableEvent, TakeOverRequest, TakeOverResponse, WatchTableRequest,
        manager_client::ManagerClient,
        manager_server::{Manager, ManagerServer},
    },
};
use tp_transport::{
    Admission, Identity, KeyHash, PathChoice, Peer, Refusal, SessionRef, Tunnel, TunnelConfig,
    TunnelServer,
};

use super::super::{cluster::Cluster, renewal::Login, shared::ActiveTunnel};

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

/// A manager that finds every workload, and says of each intercept that it hears of what `pods` is.
#[derive(Clone)]
pub(super) struct StagedManager {
    /// What the session said last.
    pub(super) heard: watch::Sender<LocalIntercepts>,
    pub(super) state: Arc<Mutex<InterceptState>>,
    pub(super) refusal: Arc<Mutex<Option<Status>>>,
    pub(super) ready: Arc<AtomicU32>,
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
            ..FoundPort::default()
        });

        Ok(Response::new(FindWorkloadResponse {
            kind: "Deployment".to_owned(),
            name: request.workload,
            ports: ports.collect(),
            ready: self.ready.load(Ordering::Relaxed),
            held: Vec::new(),
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
        let ports = request.into_inner().ports;
        let mut state = lock(&self.state);
        let (ended, held) = mem::take(&mut state.held)
            .into_iter()
            .partition(|it| ports.contains(&it.port));
        state.held = held;

        Ok(Response::new(TakeOverResponse { ended }))
    }

    type ServeInterceptsStream = Answers<InterceptStates>;

    async fn serve_intercepts(
        &self,
        request: Request<Streaming<LocalIntercepts>>,
    ) -> Result<Response<Self::ServeInterceptsStream>, Status> {
        let mut said = request.into_inner();
        let heard = self.heard.clone();
        let (states, of_states) = watch::channel(InterceptStates::default());
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            while let Ok(Some(local)) = said.message().await {
                let state_of = |uid: &str| InterceptState {
                    uid: uid.to_owned(),
                    ..lock(&state).clone()
                };
                let intercepts = local.intercepts.iter().map(|it| state_of(&it.uid));
                states.send_replace(InterceptStates {
                    intercepts: intercepts.collect(),
                });
                heard.send_replace(local);
            }
        });

        Ok(Response::new(Box::pin(WatchStream::new(of_states).map(Ok))))
    }
}

/// An API server to which everybody is alice. It has Intercepts alone.
pub(super) struct StagedApi {
    /// By name.
    pub(super) objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// The answer to whoever creates an Intercept, if it is no success: code and message.
    pub(super) refusal: Arc<Mutex<Option<(u16, String)>>>,
    pub(super) login: Arc<Login>,
    _file: tempfile::NamedTempFile,
    _serving: AbortOnDropHandle<()>,
}

impl StagedApi {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let objects = Arc::new(Mutex::new(BTreeMap::new()));
        let refusal = Arc::new(Mutex::new(None));
        let serving = serve(listener, Arc::clone(&objects), Arc::clone(&refusal));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), kubeconfig(address)).unwrap();
        let request = ConnectRequest {
            kubeconfigs: vec![file.path().display().to_string()],
            namespace: "shop".to_owned(),
            ..ConnectRequest::default()
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(serving));
        let cluster = Arc::new(Cluster::load(&request).await.unwrap());

        Self {
            objects,
            refusal,
            login: Arc::new(Login::new(request, "alice", cluster)),
            _file: file,
            _serving: serving,
        }
    }
}

fn kubeconfig(server: SocketAddr) -> String {
    format!(
        "current-context: lab\ncontexts: [{{name: lab, context: {{cluster: lab, user: me}}}}]\n\
         clusters: [{{name: lab, cluster: {{server: 'https://{server}', \
         insecure-skip-tls-verify: true}}}}]\nusers: [{{name: me, user: {{token: t}}}}]\n"
    )
}

async fn serve(
    listener: TcpListener,
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    refusal: Arc<Mutex<Option<(u16, String)>>>,
) {
    let acceptor = acceptor();
    let mut made = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(stream) = acceptor.accept(stream).await else {
            continue;
        };
        let Some((line, body, stream)) = request(stream).await else {
            continue;
        };
        made += 1;
        let refusal = lock(&refusal).clone();
        let (code, answer) = answer(&line, body, made, &objects, refusal);
        write(stream, code, &answer).await;
    }
}

fn answer(
    line: &str,
    mut body: Value,
    made: usize,
    objects: &Mutex<BTreeMap<String, Value>>,
    refusal: Option<(u16, String)>,
) -> (u16, Value) {
    let failed = |code: u16, message: &str| {
        let reason = if code == 404 { "NotFound" } else { "" };
        let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
            "message": message, "reason": reason, "code": code});
        (code, status)
    };
    let name = line.rsplit('/').next().unwrap_or_default();
    let mut objects = lock(objects);
    if line.ends_with("/selfsubjectreviews") {
        body["status"] = json!({"userInfo": {"username": "alice"}});
        return (200, body);
    }
    match (line.split(' ').next(), refusal) {
        (Some("POST"), Some((code, message))) => failed(code, &message),
        (Some("POST"), None) => {
            body["metadata"]["uid"] = json!(format!("uid-{made}"));
            let name = body["metadata"]["name"].as_str().unwrap().to_owned();
            objects.insert(name, body.clone());
            (200, body)
        }
        (Some("DELETE"), _) if objects.remove(name).is_some() => (
            200,
            json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}),
        ),
        (Some("GET"), _) if objects.contains_key(name) => (200, objects[name].clone()),
        _ => failed(404, "not found"),
    }
}

async fn write(mut stream: impl AsyncWrite + Unpin, code: u16, answer: &Value) {
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        answer.len()
    );
    // A client that has gone reads nothing.
    drop(stream.write_all((head + &answer).as_bytes()).await);
    drop(stream.shutdown().await);
}

/// kube sends credentials over TLS only.
fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key);

    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// Method and path, and the body.
async fn request<S: AsyncRead + Unpin>(mut stream: S) -> Option<(String, Value, S)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8(bytes.clone()).ok()?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse().ok()).flatten()
        });
        if body.len() >= length.unwrap_or(0) {
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            let line = head.split(" HTTP").next()?.split('?').next()?.to_owned();
            return Some((line, body, stream));
        }
    }
}

//! The far end of the tunnel, in this process: a real tunnel server behind a byte stream in memory.
//! It admits only the one session, dials nothing, and decides by the target's port (see
//! [`decide`]); its manager resolves by the first label of a name (see [`resolve`]).

use std::{
    collections::BTreeMap,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::time::sleep;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tp_proto::tunnel::{
    EnvironmentRequest, EnvironmentResponse, FindWorkloadRequest, FindWorkloadResponse,
    HelloRequest, HelloResponse, InterceptStates, ListWorkloadsRequest, ListWorkloadsResponse,
    LocalIntercepts, Outcome, ResolveRequest, ResolveResponse, Service, Snapshot, TableEvent,
    TakeOverRequest, TakeOverResponse, WatchTableRequest,
    manager_server::{Manager, ManagerServer},
};
use tp_transport::{
    Accepted, Admission, Flow, FlowError, FlowIo, Identity, KeyHash, Peer, PendingFlow, Refusal,
    ResetCode, SessionRef, TunnelServer,
};

/// The address of cluster names outside the table.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 9);
/// The only service with an address.
pub(crate) const WEB_NAME: &str = "web.shop.svc.cluster.local.";
const WEB: [u8; 4] = [10, 96, 1, 2];
const DELAY: Duration = Duration::from_millis(200);
/// Two retransmissions of a SYN: 1 s and 3 s after the first.
const SLOW: Duration = Duration::from_millis(3500);
/// Bytes of a flow that ends in a reset.
const TRUNCATED: usize = 1 << 20;
/// Time to live of answers, in seconds.
const TTL: u32 = 5;
/// Capacity of the byte stream, in bytes.
const LINK: usize = 256 << 10;

/// The result of a dial.
#[derive(Clone, Copy, Debug)]
enum Decision {
    /// Sends the target, then echoes.
    Connect,
    /// Sends so many bytes, then resets.
    Truncate(usize),
    Refuse(Outcome),
    /// No result.
    Silence,
}

fn decide(port: u16) -> (Decision, Duration) {
    match port {
        7001 => (Decision::Refuse(Outcome::Refused), Duration::ZERO),
        7002 => (Decision::Refuse(Outcome::Refused), DELAY),
        7003 => (Decision::Refuse(Outcome::HostUnreachable), Duration::ZERO),
        7004 => (Decision::Silence, Duration::ZERO),
        7005 => (Decision::Connect, DELAY),
        7006 => (Decision::Refuse(Outcome::HostUnreachable), DELAY),
        7007 => (Decision::Connect, SLOW),
        7008 => (Decision::Refuse(Outcome::Refused), SLOW),
        7009 => (
            Decision::Refuse(Outcome::NetworkUnreachable),
            Duration::ZERO,
        ),
        7010 => (Decision::Refuse(Outcome::Prohibited), Duration::ZERO),
        7011 => (Decision::Refuse(Outcome::Exhausted), Duration::ZERO),
        7012 => (Decision::Refuse(Outcome::TimedOut), DELAY),
        7013 => (Decision::Truncate(TRUNCATED), Duration::ZERO),
        7014 => (Decision::Truncate(0), Duration::ZERO),
        _ => (Decision::Connect, Duration::ZERO),
    }
}

pub(crate) struct FarSide {
    /// Precedes the target in greetings, unless it is 0.
    number: u8,
    server: Arc<TunnelServer>,
    /// The session's key, and the server's key that it pins.
    pub(crate) session_identity: Identity,
    pub(crate) manager_key: KeyHash,
    dials: Mutex<BTreeMap<SocketAddr, u64>>,
}

impl FarSide {
    /// Greets with its number, unless that is 0. Must be called within a runtime.
    pub(crate) fn new(number: u8) -> Arc<Self> {
        let generate = || Identity::generate().expect("keys can be made");
        let (session_identity, manager) = (generate(), generate());
        let manager_key = manager.key_hash();
        let only = Arc::new(Only(session_identity.key_hash()));

        Arc::new(Self {
            number,
            server: TunnelServer::bind(None, manager, only).expect("a server without a socket"),
            session_identity,
            manager_key,
            dials: Mutex::default(),
        })
    }

    /// The session's end of a byte stream to this end, which is served on this runtime.
    pub(crate) fn link(self: &Arc<Self>) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(LINK);
        let (linked, serving) = (Arc::clone(self), Arc::clone(self));
        // Both end with the process.
        tokio::spawn(async move {
            let _ = linked.server.attach(far).await;
        });
        tokio::spawn(async move {
            while let Some(peer) = serving.server.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(peer));
            }
        });

        near
    }

    /// The number of dials to this target.
    pub(crate) fn dials(&self, target: SocketAddr) -> u64 {
        let dials = self.dials.lock().expect("no thread panics");

        dials.get(&target).copied().unwrap_or_default()
    }

    async fn serve(self: Arc<Self>, peer: Peer) {
        while let Some(accepted) = peer.accept().await {
            match accepted {
                Accepted::Control(io) => drop(tokio::spawn(control(io))),
                Accepted::Dial {
                    target, pending, ..
                } => {
                    let mut dials = self.dials.lock().expect("no thread panics");
                    *dials.entry(target).or_default() += 1;
                    drop(tokio::spawn(dialled(self.number, target, pending)));
                }
            }
        }
    }
}

async fn dialled(number: u8, target: SocketAddr, dial: PendingFlow) {
    let (decision, delay) = decide(target.port());
    tokio::select! {
        () = dial.cancelled() => return,
        // The delay of this target.
        () = sleep(delay) => {}
    }
    match decision {
        Decision::Refuse(outcome) => dial.refuse(outcome, "by the port").await,
        Decision::Silence => dial.cancelled().await,
        Decision::Connect => {
            if let Ok(flow) = dial.accept().await {
                // The application may end at any moment.
                let _ = greet_and_echo(flow, number, target).await;
            }
        }
        Decision::Truncate(length) => {
            if let Ok(flow) = dial.accept().await {
                let (mut send, mut recv) = flow.split();
                let _ = send.write_all(&vec![b'x'; length]).await;
                send.reset(ResetCode::Reset);
                recv.stop(ResetCode::Reset);
            }
        }
    }
}

/// Sends the number and the target's address, then echoes.
async fn greet_and_echo(flow: Flow, number: u8, target: SocketAddr) -> Result<(), FlowError> {
    let (mut send, mut recv) = flow.split();
    let greeting = match number {
        0 => format!("{target}\n"),
        number => format!("{number} {target}\n"),
    };
    send.write_all(greeting.as_bytes()).await?;
    while let Some(chunk) = recv.read_chunk(64 << 10).await? {
        send.write_chunk(chunk).await?;
    }
    send.finish();

    send.stopped().await
}

/// Admits the holder of this key.
struct Only(KeyHash);

impl Admission for Only {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Ok(())
    }

    fn admit(&self, _: &SessionRef, key: &KeyHash) -> Result<(), Refusal> {
        (*key == self.0)
            .then_some(())
            .ok_or_else(|| Refusal::new("another key"))
    }
}

async fn control(io: FlowIo) {
    let service = TowerToHyperService::new(ManagerServer::new(Table));
    let server = Builder::new(TokioExecutor::new()).http2_only();
    // Ends with the session, in whatever way.
    let _ = server.serve_connection(TokioIo::new(io), service).await;
}

/// The cluster's table. The address of `who` ends with the number.
pub(crate) fn table(number: u8) -> Snapshot {
    let service = |name: &str, addresses: &[[u8; 4]]| Service {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        cluster_ips: addresses.iter().map(|it| it.to_vec().into()).collect(),
    };

    Snapshot {
        namespaces: vec!["default".to_owned(), "shop".to_owned()],
        services: vec![
            service("web", &[WEB]),
            service("who", &[[10, 96, 0, number]]),
            service("db", &[]),
        ],
        service_networks: vec!["10.96.0.0/16".to_owned()],
        pod_networks: vec!["10.97.0.0/16".to_owned()],
        services_are_covered: false,
        services_follow: false,
    }
}

struct Table;

#[tonic::async_trait]
impl Manager for Table {
    type WatchTableStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<TableEvent, Status>> + Send>>;

    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        Err(Status::unimplemented(
            "the session of a test does not greet",
        ))
    }

    async fn watch_table(
        &self,
        _: Request<WatchTableRequest>,
    ) -> Result<Response<Self::WatchTableStream>, Status> {
        Err(Status::unimplemented("the table of a test does not change"))
    }

    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        let query = Message::from_vec(&request.into_inner().query)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;

        resolve(&query).await.map(|response| {
            Response::new(ResolveResponse {
                response: response.into(),
            })
        })
    }

    async fn list_workloads(
        &self,
        _: Request<ListWorkloadsRequest>,
    ) -> Result<Response<ListWorkloadsResponse>, Status> {
        Err(Status::unimplemented("nobody lists"))
    }

    async fn find_workload(
        &self,
        _: Request<FindWorkloadRequest>,
    ) -> Result<Response<FindWorkloadResponse>, Status> {
        Err(Status::unimplemented("nobody intercepts"))
    }

    async fn take_over(
        &self,
        _: Request<TakeOverRequest>,
    ) -> Result<Response<TakeOverResponse>, Status> {
        Err(Status::unimplemented("nobody intercepts"))
    }

    async fn read_environment(
        &self,
        _: Request<EnvironmentRequest>,
    ) -> Result<Response<EnvironmentResponse>, Status> {
        Err(Status::unimplemented("no agents here"))
    }

    type ServeInterceptsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<InterceptStates, Status>> + Send>>;

    async fn serve_intercepts(
        &self,
        _: Request<Streaming<LocalIntercepts>>,
    ) -> Result<Response<Self::ServeInterceptsStream>, Status> {
        Err(Status::unimplemented("nobody intercepts"))
    }
}

/// `slow` delays the answer, `silent` gives none, `broken` fails, `missing` is unknown to the
/// manager, `nxdomain` to the cluster's server; all others have [`POD`].
async fn resolve(query: &Message) -> Result<Vec<u8>, Status> {
    let question = query
        .queries
        .first()
        .ok_or_else(|| Status::invalid_argument("no question"))?;
    let first = question
        .name()
        .iter()
        .next()
        .map(|label| String::from_utf8_lossy(label).to_lowercase())
        .unwrap_or_default();
    match first.as_str() {
        // The delay of this name.
        "slow" => sleep(DELAY).await,
        "silent" => pending().await,
        "broken" => return Err(Status::unavailable("the cluster's server is away")),
        "missing" => return Ok(Vec::new()),
        "nxdomain" => return Ok(answer(query, ResponseCode::NXDomain, None)),
        _ => {}
    }

    Ok(answer(query, ResponseCode::NoError, Some(POD)))
}

/// A response in wire format.
pub(crate) fn answer(query: &Message, code: ResponseCode, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut response = Message::response(query.metadata.id, OpCode::Query);
    response.metadata.response_code = code;
    for question in &query.queries {
        response.add_query(question.clone());
        if let Some(address) = address.filter(|_| question.query_type() == RecordType::A) {
            let data = RData::A(A(address));
            response.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
    }

    response.to_vec().expect("a small message")
}

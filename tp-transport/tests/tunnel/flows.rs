use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::server::NamedService;
use tp_proto::tunnel::{
    EnvironmentRequest, EnvironmentResponse, FindWorkloadRequest, FindWorkloadResponse,
    HelloRequest, HelloResponse, InterceptStates, ListWorkloadsRequest, ListWorkloadsResponse,
    LocalIntercepts, Outcome, ResolveRequest, ResolveResponse, TableEvent, TakeOverRequest,
    TakeOverResponse, WatchTableRequest,
    manager_client::ManagerClient,
    manager_server::{Manager, ManagerServer},
};
use tp_transport::{Accepted, Dialed, FlowError, OpenError, PathChoice, Peer, ResetCode, Tunnel};

use crate::support::{Lab, both_ways, echo, flow_pair, pattern, target, within};

#[tokio::test]
async fn a_flow_echoes() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let _echo = echo(peer);
    let Dialed::Connected(flow) = within("dial", tunnel.dial(target())).await.unwrap() else {
        panic!("refused");
    };
    let (mut send, mut recv) = flow.split();
    let sent = pattern(0, 3 << 20);

    let write = async {
        send.write_all(&sent).await.unwrap();
        send.finish();
    };
    let read = async {
        let mut received = Vec::new();
        while let Some(chunk) = recv.read_chunk(1 << 20).await.unwrap() {
            received.extend_from_slice(&chunk);
        }
        received
    };
    let ((), received) = within("echo", async { tokio::join!(write, read) }).await;

    assert!(received == sent);
}

#[tokio::test]
async fn dials_that_wait_for_their_targets_hold_up_no_other() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    // More than may be at the beginning of a connection.
    let mut waiting = Vec::new();
    for _ in 0..600 {
        let tunnel = tunnel.clone();
        let dial = tokio::spawn(async move { tunnel.dial(target()).await });
        let Some(Accepted::Dial { pending, .. }) = within("a dial", peer.accept()).await else {
            panic!("a dial is expected");
        };
        waiting.push((dial, pending));
    }

    let (_near, _far) = flow_pair(&tunnel, &peer).await;
    assert!(waiting.iter().all(|(dial, _)| !dial.is_finished()));
}

#[tokio::test]
async fn a_half_close_leaves_the_other_direction_open_both_ways() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    for (first, second) in both_ways(&tunnel, &peer).await {
        let ((mut send, mut recv), (mut other_send, mut other_recv)) =
            (first.split(), second.split());

        send.finish();
        let end = within("end", other_recv.read_chunk(100)).await.unwrap();
        assert_eq!(end, None);
        other_send.write_all(b"still here").await.unwrap();
        other_send.finish();
        let chunk = within("answer", recv.read_chunk(100)).await.unwrap();

        assert_eq!(chunk.as_deref(), Some(&b"still here"[..]));
        assert_eq!(recv.read_chunk(100).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_both_ways() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    for (first, second) in both_ways(&tunnel, &peer).await {
        let (mut send, mut recv) = second.split();

        first.reset(ResetCode::Reset);

        let read = within("reset", recv.read_chunk(100)).await;
        assert_eq!(read, Err(FlowError::Reset(ResetCode::Reset)));
        let stopped = within("stop", send.stopped()).await;
        assert_eq!(stopped, Err(FlowError::Reset(ResetCode::Reset)));
        send.reset(ResetCode::Reset);
    }
}

#[tokio::test]
async fn a_flow_that_is_dropped_never_looks_complete() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (near, far) = flow_pair(&tunnel, &peer).await;
    let (mut send, _recv) = near.split();
    let (_far_send, mut far_recv) = far.split();
    send.write_all(b"half of it").await.unwrap();

    drop(send);

    let error = within("reset", async {
        loop {
            match far_recv.read_chunk(100).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a clean end"),
                Err(error) => break error,
            }
        }
    })
    .await;
    assert_eq!(error, FlowError::Reset(ResetCode::Aborted));
}

#[tokio::test]
async fn a_reset_right_behind_the_verdict_is_one_of_a_connection() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let server = async {
        let Some(Accepted::Dial { pending, .. }) = peer.accept().await else {
            panic!("no dial");
        };
        pending.accept().await.unwrap().reset(ResetCode::Reset);
    };

    let both = async { tokio::join!(tunnel.dial(target()), server) };
    let (dialed, ()) = within("dial", both).await;

    let Dialed::Connected(flow) = dialed.unwrap() else {
        panic!("refused");
    };
    let (_send, mut recv) = flow.split();
    let read = within("reset", recv.read_chunk(100)).await;
    assert_eq!(read, Err(FlowError::Reset(ResetCode::Reset)));
}

#[tokio::test]
async fn a_dial_that_is_dropped_without_a_verdict_is_no_connection() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let server = async { drop(peer.accept().await) };

    let both = async { tokio::join!(tunnel.dial(target()), server) };
    let (dialed, ()) = within("dial", both).await;

    let error = OpenError::Flow(FlowError::Reset(ResetCode::Aborted));
    assert_eq!(dialed.err(), Some(error));
}

#[tokio::test]
async fn a_refused_dial_says_how_and_why() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let _echo = echo(peer);

    let dialed = within("dial", tunnel.dial("10.96.0.1:1".parse().unwrap())).await;

    match dialed.unwrap() {
        Dialed::Refused { outcome, reason } => {
            assert_eq!(outcome, Outcome::Refused);
            assert_eq!(reason, "nobody listens there");
        }
        Dialed::Connected(_) => panic!("connected"),
    }
}

#[tokio::test]
async fn a_dial_arrives_with_its_target_and_can_be_given_up() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let wanted = "[fd00:10::5]:8443".parse().unwrap();
    let mut dial = Box::pin(tunnel.dial(wanted));

    let accepted = within("accept", async {
        tokio::select! {
            accepted = peer.accept() => accepted.unwrap(),
            _ = &mut dial => panic!("a verdict out of nowhere"),
        }
    })
    .await;
    let Accepted::Dial {
        target, pending, ..
    } = accepted
    else {
        panic!("a control stream");
    };
    assert_eq!(target, wanted);
    drop(dial);

    within("cancelled", pending.cancelled()).await;
}

#[tokio::test]
async fn grpc_runs_over_the_control_stream() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let serve = serve_greeter(peer);

    assert_eq!(greet(&tunnel).await, "hello 7.0");
    assert_eq!(ManagerServer::<Greeter>::NAME, "tp.tunnel.v1.Manager");
    serve.abort();
}

/// Serves the next stream that the session opens, which is a control stream.
pub(crate) fn serve_greeter(peer: Peer) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Some(Accepted::Control(io)) = peer.accept().await else {
            panic!("no control stream");
        };
        let incoming =
            tokio_stream::once(Ok::<_, std::io::Error>(io)).chain(tokio_stream::pending());
        tonic::transport::Server::builder()
            .add_service(ManagerServer::new(Greeter))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    })
}

pub(crate) async fn greet(tunnel: &Tunnel) -> String {
    let response = within("hello", async {
        let io = tunnel.open_control().await.unwrap();
        let mut client = ManagerClient::new(io.into_channel().await.unwrap());
        let version = "7.0".into();
        client.hello(HelloRequest { version }).await.unwrap()
    })
    .await;

    response.into_inner().version
}

struct Greeter;

#[tonic::async_trait]
impl Manager for Greeter {
    async fn hello(
        &self,
        request: tonic::Request<HelloRequest>,
    ) -> Result<tonic::Response<HelloResponse>, tonic::Status> {
        let version = format!("hello {}", request.into_inner().version);

        Ok(tonic::Response::new(HelloResponse {
            version,
            ..HelloResponse::default()
        }))
    }

    type WatchTableStream = tokio_stream::Empty<Result<TableEvent, tonic::Status>>;

    async fn watch_table(
        &self,
        _: tonic::Request<WatchTableRequest>,
    ) -> Result<tonic::Response<Self::WatchTableStream>, tonic::Status> {
        Ok(tonic::Response::new(tokio_stream::empty()))
    }

    async fn resolve(
        &self,
        _: tonic::Request<ResolveRequest>,
    ) -> Result<tonic::Response<ResolveResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    async fn list_workloads(
        &self,
        _: tonic::Request<ListWorkloadsRequest>,
    ) -> Result<tonic::Response<ListWorkloadsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    async fn find_workload(
        &self,
        _: tonic::Request<FindWorkloadRequest>,
    ) -> Result<tonic::Response<FindWorkloadResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    async fn take_over(
        &self,
        _: tonic::Request<TakeOverRequest>,
    ) -> Result<tonic::Response<TakeOverResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    async fn read_environment(
        &self,
        _: tonic::Request<EnvironmentRequest>,
    ) -> Result<tonic::Response<EnvironmentResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    type ServeInterceptsStream = tokio_stream::Empty<Result<InterceptStates, tonic::Status>>;

    async fn serve_intercepts(
        &self,
        _: tonic::Request<tonic::Streaming<LocalIntercepts>>,
    ) -> Result<tonic::Response<Self::ServeInterceptsStream>, tonic::Status> {
        Ok(tonic::Response::new(tokio_stream::empty()))
    }
}

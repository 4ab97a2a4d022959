//! A manager's tunnel server, and services that listen on loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Endpoint;
use tp_core::{dns::Zone, intercept::proxy_protocol};
use tp_transport::{Dialed, Identity, InterceptedFrom, KeyHash, Peer, SessionRef, TunnelServer};

use super::{
    super::testing::{Anybody, connect},
    *,
};

const LIMIT: Duration = Duration::from_secs(10);
const UID: &str = "8a4e";
const PORT: u16 = 8080;

/// A session whose intercepts are served, and the manager's view of it.
struct Lab {
    intercepts: Arc<InterceptTargets>,
    shared: Arc<Shared>,
    server: Arc<TunnelServer>,
    manager_key: KeyHash,
    _serving: AbortOnDropHandle<()>,
}

impl Lab {
    fn new() -> Self {
        let identity = Identity::generate().unwrap();
        let manager_key = identity.key_hash();
        let intercepts = Arc::new(InterceptTargets::default());
        let shared = Arc::new(Shared::new(Zone::new("cluster.local", "shop", [])));
        let serving = Arc::clone(&intercepts).serve(Arc::clone(&shared));

        Self {
            intercepts,
            shared,
            server: TunnelServer::bind(None, identity, Arc::new(Anybody)).unwrap(),
            manager_key,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// Connects, as the uplink does; returns the manager's end.
    async fn connect(&self) -> Peer {
        // Nothing is asked of the manager.
        let nobody = Endpoint::from_static("http://[::1]:9").connect_lazy();
        let (up, peer) = connect(&self.server, self.manager_key, session("1"), nobody).await;
        self.shared.up.send_replace(Some(up));

        peer
    }
}

fn session(uid: &str) -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: "alice".into(),
        uid: uid.into(),
    }
}

fn from(uid: &str, port: u16) -> InterceptedFrom {
    InterceptedFrom {
        intercept: uid.to_owned(),
        client: "10.244.2.9:40112".parse().unwrap(),
        pod: (Ipv4Addr::new(10, 244, 1, 7), port).into(),
    }
}

/// A service on loopback that answers each connection with what it reads, backwards.
async fn service() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut request = Vec::new();
            tcp.read_to_end(&mut request).await.unwrap();
            request.reverse();
            tcp.write_all(&request).await.unwrap();
        }
    });

    (address, AbortOnDropHandle::new(serving))
}

/// An address of loopback where nothing listens.
async fn unused() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();

    listener.local_addr().unwrap()
}

fn target(address: SocketAddr) -> LocalTarget {
    LocalTarget {
        address,
        proxy_protocol: false,
        unshown: Arc::default(),
    }
}

async fn open(peer: &Peer, from: &InterceptedFrom) -> Dialed {
    let opened = timeout(LIMIT, peer.open_intercepted(from)).await;

    opened.expect("a verdict comes").unwrap()
}

/// Asks the workstation's service by an intercepted connection.
async fn ask(peer: &Peer, question: &[u8]) -> Vec<u8> {
    let Dialed::Connected(flow) = open(peer, &from(UID, PORT)).await else {
        panic!("refused");
    };
    let (mut send, mut recv) = flow.split();
    send.write_all(question).await.unwrap();
    send.finish();
    let mut answer = Vec::new();
    while let Some(bytes) = timeout(LIMIT, recv.read_chunk(1024))
        .await
        .unwrap()
        .unwrap()
    {
        answer.extend_from_slice(&bytes);
    }

    answer
}

#[tokio::test]
async fn a_connection_reaches_the_port_of_its_intercept() {
    let lab = Lab::new();
    let (address, _service) = service().await;
    lab.intercepts.insert(UID, [(PORT, target(address))].into());
    let peer = lab.connect().await;

    assert_eq!(ask(&peer, b"hello").await, b"olleh");
    assert_eq!(lab.intercepts.counters.received.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn with_the_proxy_protocol_the_process_reads_who_connected_before_all_else() {
    let lab = Lab::new();
    let (address, _service) = service().await;
    let mut target = target(address);
    target.proxy_protocol = true;
    lab.intercepts.insert(UID, [(PORT, target)].into());
    let peer = lab.connect().await;

    let mut answer = ask(&peer, b"hello").await;

    answer.reverse();
    let from = from(UID, PORT);
    let header = proxy_protocol::header(from.client, from.pod);
    assert_eq!(answer, [header, b"hello".to_vec()].concat());
}

#[tokio::test]
async fn only_intercepts_of_this_session_are_taken_and_only_their_ports() {
    let lab = Lab::new();
    let (address, _service) = service().await;
    lab.intercepts.insert(UID, [(PORT, target(address))].into());
    let peer = lab.connect().await;

    for foreign in [from("another", PORT), from(UID, PORT + 1)] {
        let Dialed::Refused { outcome, reason } = open(&peer, &foreign).await else {
            panic!("it was taken");
        };
        assert_eq!((outcome, reason.as_str()), (Outcome::Prohibited, NOT_OURS));
    }
    lab.intercepts.remove(UID);
    let Dialed::Refused { outcome, .. } = open(&peer, &from(UID, PORT)).await else {
        panic!("it was taken after its end");
    };
    assert_eq!(outcome, Outcome::Prohibited);
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_refused_as_the_kernel_refuses_it() {
    let lab = Lab::new();
    let address = unused().await;
    lab.intercepts.insert(UID, [(PORT, target(address))].into());
    let peer = lab.connect().await;

    let Dialed::Refused { outcome, reason } = open(&peer, &from(UID, PORT)).await else {
        panic!("connected");
    };

    assert_eq!(outcome, Outcome::Refused);
    // It goes to the cluster, which need not know where the process listens.
    assert!(reason.contains("connection refused"), "{reason}");
    assert!(!reason.contains(&address.ip().to_string()), "{reason}");
}

#[tokio::test]
async fn after_a_reconnect_the_same_intercepts_are_served() {
    let lab = Lab::new();
    let (address, _service) = service().await;
    lab.intercepts.insert(UID, [(PORT, target(address))].into());
    let first = lab.connect().await;
    assert_eq!(ask(&first, b"one").await, b"eno");
    lab.shared.up.send_replace(None);
    drop(first);

    let second = lab.connect().await;

    assert_eq!(ask(&second, b"two").await, b"owt");
}

#[tokio::test]
async fn a_refused_connection_is_noted_once() {
    let lab = Lab::new();
    let address = unused().await;
    lab.intercepts.insert(UID, [(PORT, target(address))].into());
    let peer = lab.connect().await;

    for _ in 0..2 {
        open(&peer, &from(UID, PORT)).await;
    }

    let refused = lab.intercepts.take_refused();
    assert_eq!(refused, [(UID.to_owned(), PORT)].into());
    assert!(lab.intercepts.take_refused().is_empty());
}

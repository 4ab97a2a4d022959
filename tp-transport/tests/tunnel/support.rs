//! A server that admits one session, and echoes.

pub(crate) mod quic;
pub(crate) mod relay;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tp_proto::tunnel::Outcome;
use tp_transport::{
    Accepted, Admission, ConnectError, Dialed, Flow, Identity, KeyHash, PathChoice, PathKind, Peer,
    Refusal, SessionRef, Tunnel, TunnelConfig, TunnelServer,
};

/// Longer than anything here takes on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    within_limit(TIMEOUT, what, future).await
}

pub(crate) async fn within_limit<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}

pub(crate) fn session(name: &str) -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: name.into(),
        uid: "6f1c7b0a-0000-4000-8000-000000000001".into(),
    }
}

/// The preface of a byte stream that claims to be this session's.
pub(crate) fn preface_of(name: &str) -> Vec<u8> {
    let session = session(name);
    let mut preface = b"tp-T\x01".to_vec();
    for part in [&session.namespace, &session.name, &session.uid] {
        preface.push(u8::try_from(part.len()).unwrap());
        preface.extend_from_slice(part.as_bytes());
    }

    preface
}

/// Knows the session `alice` and her key.
struct OnlyAlice {
    key: KeyHash,
}

impl Admission for OnlyAlice {
    fn known(&self, known: &SessionRef) -> Result<(), Refusal> {
        match known.name.as_str() {
            "alice" | "bob" => Ok(()),
            _ => Err(Refusal::new("there is no such session")),
        }
    }

    fn admit(&self, admitted: &SessionRef, key: &KeyHash) -> Result<(), Refusal> {
        match *admitted == session("alice") && *key == self.key {
            true => Ok(()),
            false => Err(Refusal::new("another key")),
        }
    }
}

pub(crate) struct Lab {
    pub(crate) server: Arc<TunnelServer>,
    pub(crate) manager_key: KeyHash,
    pub(crate) alice: Identity,
    pub(crate) udp: SocketAddr,
    links: JoinSet<()>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (alice, manager) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let manager_key = manager.key_hash();
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = socket.local_addr().unwrap();
        let admission = Arc::new(OnlyAlice {
            key: alice.key_hash(),
        });

        Self {
            server: TunnelServer::bind(Some(socket), manager, admission).unwrap(),
            manager_key,
            alice,
            udp,
            links: JoinSet::new(),
        }
    }

    /// The client's end of a byte stream to the server.
    pub(crate) fn link(&mut self) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        self.attach(far);

        near
    }

    pub(crate) fn attach(
        &mut self,
        link: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> tokio::task::AbortHandle {
        let server = Arc::clone(&self.server);
        self.links.spawn(async move {
            let _ = server.attach(link).await;
        })
    }

    pub(crate) fn config(&self, choice: PathChoice) -> TunnelConfig {
        TunnelConfig {
            identity: self.alice.clone(),
            session: session("alice"),
            manager_key: self.manager_key,
            choice,
        }
    }

    pub(crate) async fn connect(&mut self, choice: PathChoice) -> Result<Tunnel, ConnectError> {
        let (config, link) = (self.config(choice), self.link());

        within("connect", Tunnel::connect(link, config)).await
    }

    /// Both ends of an admitted session.
    pub(crate) async fn pair(&mut self, choice: PathChoice) -> (Tunnel, Peer) {
        let tunnel = self.connect(choice).await.unwrap();
        let peer = within("accept", self.server.accept()).await.unwrap();

        (tunnel, peer)
    }

    /// As [`Lab::pair`], moved to UDP.
    pub(crate) async fn udp_pair(&mut self) -> (Tunnel, Peer) {
        let (tunnel, peer) = self.pair(PathChoice::Auto).await;
        tunnel.set_candidates(vec![self.udp]);
        on_path(&tunnel, PathKind::Udp).await;

        (tunnel, peer)
    }
}

pub(crate) async fn on_path(tunnel: &Tunnel, path: PathKind) {
    let mut status = tunnel.path();
    let arrived = status.wait_for(|status| status.path == path);
    within("the change of path", arrived).await.unwrap();
}

pub(crate) fn target() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

/// A flow as both ends see it.
pub(crate) async fn flow_pair(tunnel: &Tunnel, peer: &Peer) -> (Flow, Flow) {
    let accepted = async {
        match peer.accept().await.unwrap() {
            Accepted::Dial { pending, .. } => pending.accept().await.unwrap(),
            Accepted::Control(_) => panic!("a control stream"),
        }
    };
    let (dialed, accepted) = within("dial", async {
        tokio::join!(tunnel.dial(target()), accepted)
    })
    .await;
    match dialed.unwrap() {
        Dialed::Connected(flow) => (flow, accepted),
        Dialed::Refused { outcome, reason } => panic!("refused: {outcome:?} {reason}"),
    }
}

/// A flow that begins with the client's end, and another with the server's.
pub(crate) async fn both_ways(tunnel: &Tunnel, peer: &Peer) -> [(Flow, Flow); 2] {
    let forth = flow_pair(tunnel, peer).await;
    let (near, far) = flow_pair(tunnel, peer).await;

    [forth, (far, near)]
}

/// Answers every dial with an echo, until the peer ends.
pub(crate) fn echo(peer: Peer) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut flows = JoinSet::new();
        while let Some(accepted) = peer.accept().await {
            match accepted {
                Accepted::Dial {
                    pending, target, ..
                } if target.port() == 1 => {
                    let refused = pending.refuse(Outcome::Refused, "nobody listens there");
                    flows.spawn(refused);
                }
                Accepted::Dial { pending, .. } => {
                    flows.spawn(async move {
                        let _ = echo_flow(pending.accept().await.unwrap()).await;
                    });
                }
                Accepted::Control(_) => {}
            }
        }
    }))
}

async fn echo_flow(flow: Flow) -> Result<(), tp_transport::FlowError> {
    let (mut send, mut recv) = flow.split();
    while let Some(chunk) = recv.read_chunk(1 << 20).await? {
        send.write_chunk(chunk).await?;
    }
    send.finish();

    send.stopped().await
}

/// Sends `length` bytes through an echo and compares what returns; `halfway` is called once some
/// have returned.
pub(crate) async fn exchange(tunnel: &Tunnel, length: usize, halfway: impl FnOnce()) {
    const CHUNK: usize = 256 << 10;

    let dialed = within("dial", tunnel.dial(target())).await;
    let Dialed::Connected(flow) = dialed.unwrap() else {
        panic!("refused");
    };
    let (mut send, mut recv) = flow.split();
    let block = pattern(0, CHUNK);
    let write = async {
        let mut sent = 0;
        while sent < length {
            let size = CHUNK.min(length - sent);
            send.write_chunk(block.slice(..size)).await.unwrap();
            sent += size;
        }
        send.finish();
    };
    let read = async {
        let mut halfway = Some(halfway);
        let mut received = 0;
        while let Some(chunk) = recv.read_chunk(CHUNK).await.unwrap() {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let start = received % CHUNK;
                let size = rest.len().min(CHUNK - start);
                assert!(rest[..size] == block[start..start + size], "at {received}");
                received += size;
                rest = &rest[size..];
            }
            if received >= length / 10
                && let Some(halfway) = halfway.take()
            {
                halfway();
            }
        }
        received
    };
    let transfer = timeout(Duration::from_secs(60), async { tokio::join!(write, read) });
    let ((), received) = transfer.await.unwrap();

    assert_eq!(received, length);
}

/// Bytes in which every position differs from those nearby.
pub(crate) fn pattern(start: usize, length: usize) -> Bytes {
    (start..start + length)
        .map(|position| (position.wrapping_mul(0x9e37_79b1) >> 16) as u8)
        .collect()
}

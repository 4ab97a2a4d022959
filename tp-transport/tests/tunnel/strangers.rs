use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};
use tp_transport::{PathChoice, PathKind, Tunnel};

use crate::support::{
    Lab, echo, exchange, on_path,
    relay::{End, Relay, connected_to},
    within,
};

/// Of the wait for an answer to a stranger.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_stranger_gets_nothing_back_whatever_he_sends() {
    let mut lab = Lab::new();
    let (_tunnel, _peer) = lab.udp_pair().await;
    let stranger = connected_to(lab.udp).await;

    // A QUIC Initial of version 1, of an unknown version, a short header, a probe without a key,
    // nothing, and noise.
    let mut initial = vec![0; 1200];
    initial[..7].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8, 0xaa]);
    let mut negotiation = initial.clone();
    negotiation[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    let mut probe = vec![0; 1452];
    probe[0] = 0x10;
    for datagram in [
        initial,
        negotiation,
        vec![0x40; 1200],
        probe,
        vec![],
        vec![0xff; 700],
    ] {
        stranger.send(&datagram).await.unwrap();
    }

    assert_silent(&stranger).await;
}

#[tokio::test]
async fn a_replayed_probe_is_answered_to_nobody_and_wins_no_address() {
    let mut lab = Lab::new();
    let (tunnel, _peer) = lab.pair(PathChoice::Auto).await;
    let tap = Tap::new(lab.udp).await;
    tunnel.set_candidates(vec![tap.address]);
    let (probe, answered) = within("a probe", tap.first_probe()).await;
    assert!(answered);

    let stranger = connected_to(lab.udp).await;
    stranger.send(&probe).await.unwrap();
    for changed in [0, 1, 9, 16, 700, probe.len() - 1] {
        let mut forged = probe.clone();
        forged[changed] ^= 1;
        stranger.send(&forged).await.unwrap();
    }
    stranger.send(&[0x40; 1200]).await.unwrap();

    assert_silent(&stranger).await;
    assert_eq!(tunnel.path().borrow().path, PathKind::Stream);
}

#[tokio::test]
async fn an_address_that_a_client_has_proven_starts_no_handshake() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::Auto).await;
    let _echo = echo(peer);
    let thief = Thief::between(&tunnel, lab.udp).await;

    // A server that reads it answers with the versions that it speaks.
    let mut unknown_version = vec![0; 1200];
    unknown_version[..7].copy_from_slice(&[0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8, 0xaa]);
    thief.proven.send(&unknown_version).await.unwrap();
    exchange(&tunnel, 1 << 20, || {}).await;

    assert_eq!(thief.long_headers.load(Ordering::Relaxed), 0);
}

/// QUIC itself would move the connection to the thief's address and answer there, because what it
/// reads is genuine and newer than everything before (RFC 9000, section 9.3).
#[tokio::test]
async fn packets_stolen_from_a_client_win_the_thief_no_answer() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::Auto).await;
    let _echo = echo(peer);
    let thief = Thief::between(&tunnel, lab.udp).await;
    exchange(&tunnel, 1 << 20, || {}).await;

    thief.steals.store(true, Ordering::Relaxed);
    exchange(&tunnel, 1 << 20, || {}).await;

    assert!(thief.stolen.load(Ordering::Relaxed) > 0, "nothing to steal");
    assert_silent(&thief.own).await;
    assert_eq!(tunnel.path().borrow().path, PathKind::Stream);
}

async fn assert_silent(stranger: &UdpSocket) {
    let mut buffer = [0; 2048];
    if let Ok(received) = timeout(ANSWER_TIMEOUT, stranger.recv(&mut buffer)).await {
        panic!("the port answers a stranger: {received:?}");
    }
}

/// Stands between the client and the server, and passes probes one way only.
struct Tap {
    near: UdpSocket,
    far: UdpSocket,
    address: SocketAddr,
}

impl Tap {
    async fn new(server: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = connected_to(server).await;
        let address = near.local_addr().unwrap();

        Self { near, far, address }
    }

    /// The first probe of the client, and whether the server answered it.
    async fn first_probe(&self) -> (Vec<u8>, bool) {
        let mut buffer = [0; 2048];
        let (length, _) = self.near.recv_from(&mut buffer).await.unwrap();
        let probe = buffer[..length].to_vec();
        self.far.send(&probe).await.unwrap();
        let answer = timeout(ANSWER_TIMEOUT, self.far.recv(&mut buffer)).await;

        (probe, answer.is_ok())
    }
}

/// Carries a client's UDP both ways until it steals: then the client's packets go out under the
/// thief's own address instead, and nothing else goes anywhere.
struct Thief {
    own: Arc<UdpSocket>,
    /// The client's address as the server sees it.
    proven: Arc<UdpSocket>,
    /// Packets of a handshake that came from the server.
    long_headers: Arc<AtomicUsize>,
    steals: Arc<AtomicBool>,
    stolen: Arc<AtomicUsize>,
    _relay: Relay,
}

impl Thief {
    /// Returns when the client's packets go by way of the thief.
    async fn between(tunnel: &Tunnel, server: SocketAddr) -> Self {
        let [proven, own] = [connected_to(server).await, connected_to(server).await].map(Arc::new);
        let [long_headers, stolen] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let steals = Arc::<AtomicBool>::default();
        let (thief, stealing) = (Arc::clone(&own), Arc::clone(&steals));
        let (seen, counted) = (Arc::clone(&long_headers), Arc::clone(&stolen));
        let passes = move |from, packet: &[u8]| {
            let (form, stealing) = (packet.first(), stealing.load(Ordering::Relaxed));
            match from {
                End::Client => {
                    let is_short_header = form.is_some_and(|it| it & 0xc0 == 0x40);
                    if stealing && is_short_header && thief.try_send(packet).is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                End::Server => {
                    if form.is_some_and(|it| it & 0xc0 == 0xc0) {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            !stealing
        };
        let relay = Relay::start(Arc::clone(&proven), passes).await;

        tunnel.set_candidates(vec![relay.address]);
        on_path(tunnel, PathKind::Udp).await;

        Self {
            own,
            proven,
            long_headers,
            steals,
            stolen,
            _relay: relay,
        }
    }
}

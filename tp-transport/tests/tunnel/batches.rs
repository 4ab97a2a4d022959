use std::{
    io::IoSliceMut,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use quinn::udp::{RecvMeta, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket, sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tp_transport::{PathChoice, PathKind, PathStatus, Peer, RecvHalf, SendHalf, Tunnel};

use crate::support::{Lab, echo, exchange, flow_pair, on_path, pattern};

#[tokio::test]
async fn a_path_that_loses_most_of_a_batch_is_used_without_batches() {
    without_batches(Loses::AllButTheFirst).await;
}

#[tokio::test]
async fn a_path_that_loses_batches_whole_is_used_without_batches() {
    without_batches(Loses::Whole).await;
}

#[tokio::test]
async fn a_path_that_loses_whatever_is_sent_keeps_its_batches() {
    let mut lab = Lab::new();
    let (tunnel, peer, _relay) = lab.over(Loses::OneInFive).await;

    let tried = async {
        said(tunnel.path(), "off for a trial").await;
        said(tunnel.path(), "").await;
    };
    while_busy(&tunnel, &peer, tried).await;
    let _echo = echo(peer);
    exchange(&tunnel, 1 << 20, || {}).await;

    assert_eq!(tunnel.path().borrow().batching, "");
}

/// Both ends find out, each for what it sends, and the path carries everything.
async fn without_batches(loses: Loses) {
    let mut lab = Lab::new();
    let (tunnel, peer, _relay) = lab.over(loses).await;

    let found = async {
        tokio::join!(said(tunnel.path(), "off: "), said(peer.path(), "off: "));
    };
    while_busy(&tunnel, &peer, found).await;
    let _echo = echo(peer);
    exchange(&tunnel, 1 << 20, || {}).await;

    let status = tunnel.path().borrow().clone();
    assert_eq!(status.path, PathKind::Udp);
    assert!(status.batching.contains("with it"), "{}", status.batching);
}

/// Waits until `said` has come, while either end sends; never more than the path can queue.
async fn while_busy(tunnel: &Tunnel, peer: &Peer, said: impl Future<Output = ()>) {
    let (near, far) = flow_pair(tunnel, peer).await;
    let ((near_send, near_recv), (far_send, far_recv)) = (near.split(), far.split());
    let traffic = async {
        tokio::join!(
            block_by_block(near_send, far_recv),
            block_by_block(far_send, near_recv)
        );
    };
    tokio::select! {
        said = timeout(Duration::from_secs(60), said) => said.unwrap(),
        () = traffic => panic!("the flow has ended"),
    }
}

async fn block_by_block(mut send: SendHalf, mut recv: RecvHalf) {
    const BLOCK: usize = 48 << 10;

    let block = pattern(0, BLOCK);
    while send.write_chunk(block.clone()).await.is_ok() {
        let mut received = 0;
        while received < BLOCK {
            let Ok(Some(chunk)) = recv.read_chunk(BLOCK).await else {
                return;
            };
            received += chunk.len();
        }
    }
}

async fn said(mut status: watch::Receiver<PathStatus>, start: &str) {
    let wanted = |status: &PathStatus| match start {
        "" => status.batching.is_empty(),
        start => status.batching.starts_with(start),
    };
    status.wait_for(wanted).await.map(drop).unwrap();
}

/// What a path does to packets of QUIC; probes always pass.
#[derive(Clone, Copy)]
enum Loses {
    /// Of several datagrams that were sent at once, it passes one.
    AllButTheFirst,
    Whole,
    OneInFive,
}

impl Lab {
    /// A session over UDP, on a path with losses.
    async fn over(&mut self, loses: Loses) -> (Tunnel, Peer, Relay) {
        let (tunnel, peer) = self.pair(PathChoice::Auto).await;
        let relay = Relay::new(self.udp, loses).await;
        tunnel.set_candidates(vec![relay.address]);
        on_path(&tunnel, PathKind::Udp).await;

        (tunnel, peer, relay)
    }
}

struct Relay {
    address: SocketAddr,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Relay {
    async fn new(server: SocketAddr, loses: Loses) -> Self {
        let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        far.connect(server).await.unwrap();
        let address = near.local_addr().unwrap();
        let client = Arc::new(OnceLock::new());

        let (from, to, known) = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&client));
        let up = tokio::spawn(async move {
            let pass = |datagram: &[u8], sender| {
                known.get_or_init(|| sender);
                let _ = to.try_send(datagram);
            };
            pump(&from, loses, pass).await;
        });
        let down = tokio::spawn(async move {
            let pass = |datagram: &[u8], _| {
                if let Some(client) = client.get() {
                    let _ = near.try_send_to(datagram, *client);
                }
            };
            pump(&far, loses, pass).await;
        });

        Self {
            address,
            _tasks: [AbortOnDropHandle::new(up), AbortOnDropHandle::new(down)],
        }
    }
}

/// Passes what arrives on, but for what is lost. The loopback hands a batch over as it was sent.
async fn pump(socket: &UdpSocket, loses: Loses, pass: impl Fn(&[u8], SocketAddr)) {
    let state = UdpSocketState::new(socket.into()).unwrap();
    let (mut buffer, mut dice) = (vec![0; 1 << 16], 1u32);
    loop {
        let mut meta = [RecvMeta::default()];
        socket.readable().await.unwrap();
        let received = socket.try_io(Interest::READABLE, || {
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            state.recv(socket.into(), &mut buffers, &mut meta)
        });
        let (Ok(1..), [meta]) = (received, meta) else {
            continue;
        };
        let is_batch = meta.len > meta.stride;
        let datagrams = buffer[..meta.len].chunks(meta.stride.max(1));
        for (index, datagram) in datagrams.enumerate() {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let is_probe = datagram[0] & 0xc0 == 0;
            let is_lost = match loses {
                Loses::AllButTheFirst => is_batch && index > 0,
                Loses::Whole => is_batch,
                Loses::OneInFive => (dice >> 16) % 5 == 0,
            };
            if is_probe || !is_lost {
                pass(datagram, meta.addr);
            }
        }
    }
}

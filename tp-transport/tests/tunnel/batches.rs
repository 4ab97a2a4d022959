use std::{
    io::IoSliceMut,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quinn::udp::{RecvMeta, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tp_transport::{PathChoice, PathKind, Peer, Tunnel};

use crate::support::{Lab, echo, exchange, on_path};

const LOST_BOTH_WAYS: &str = "off: packets sent together do not arrive";
/// Of the wait for the verdict on a path.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(20);

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
    let (tunnel, peer, relay) = lab.over(Loses::OneInFive).await;
    let _echo = echo(peer);

    exchange(&tunnel, 1 << 20, || {}).await;

    assert_eq!(tunnel.path().borrow().batching, "");
    assert!(relay.batches() > 0, "nothing was sent together");
}

#[tokio::test]
async fn a_path_is_not_blamed_for_a_pause() {
    let mut lab = Lab::new();
    let (tunnel, peer, relay) = lab.over(Loses::Nothing).await;
    let _echo = echo(peer);

    for _ in 0..2 {
        exchange(&tunnel, 1 << 20, || {}).await;
        // Longer than a path counts as busy, and longer than any round of probes.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let before = relay.batches();
    exchange(&tunnel, 1 << 20, || {}).await;

    assert_eq!(tunnel.path().borrow().batching, "");
    assert!(relay.batches() > before, "nothing was sent together");
}

/// The client finds out for both ends, and the path carries everything.
async fn without_batches(loses: Loses) {
    let mut lab = Lab::new();
    let (tunnel, peer, relay) = lab.over(loses).await;

    let mut status = tunnel.path();
    let found = status.wait_for(|status| status.batching == LOST_BOTH_WAYS);
    timeout(VERDICT_TIMEOUT, found).await.unwrap().unwrap();
    let _echo = echo(peer);

    // The manager learns it with the next probe.
    let mut sent = Vec::new();
    for _ in 0..20 {
        let before = relay.batches();
        exchange(&tunnel, 1 << 20, || {}).await;
        sent.push(relay.batches() - before);
        if sent.last() == Some(&0) {
            break;
        }
    }
    assert_eq!(sent.last(), Some(&0), "batches in each exchange: {sent:?}");
    assert_eq!(tunnel.path().borrow().path, PathKind::Udp);
}

/// The effect of a path on datagrams.
#[derive(Clone, Copy)]
enum Loses {
    Nothing,
    /// Of several that were sent at once, it passes one.
    AllButTheFirst,
    Whole,
    OneInFive,
}

impl Lab {
    /// A session over UDP, on a path with losses.
    async fn over(&mut self, loses: Loses) -> (Tunnel, Peer, LossyRelay) {
        let (tunnel, peer) = self.pair(PathChoice::Auto).await;
        let relay = LossyRelay::new(self.udp, loses).await;
        tunnel.set_candidates(vec![relay.address]);
        on_path(&tunnel, PathKind::Udp).await;

        (tunnel, peer, relay)
    }
}

struct LossyRelay {
    address: SocketAddr,
    /// Batches of QUIC that came from either end.
    batches: Arc<AtomicUsize>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl LossyRelay {
    async fn new(server: SocketAddr, loses: Loses) -> Self {
        let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        far.connect(server).await.unwrap();
        let address = near.local_addr().unwrap();
        let client = Arc::new(OnceLock::new());
        let batches = Arc::<AtomicUsize>::default();

        let (from, to, known) = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&client));
        let seen = Arc::clone(&batches);
        let up = tokio::spawn(async move {
            let pass = |datagram: &[u8], sender| {
                known.get_or_init(|| sender);
                let _ = to.try_send(datagram);
            };
            pump(&from, loses, &seen, pass).await;
        });
        let seen = Arc::clone(&batches);
        let down = tokio::spawn(async move {
            let pass = |datagram: &[u8], _| {
                if let Some(client) = client.get() {
                    let _ = near.try_send_to(datagram, *client);
                }
            };
            pump(&far, loses, &seen, pass).await;
        });

        Self {
            address,
            batches,
            _tasks: [AbortOnDropHandle::new(up), AbortOnDropHandle::new(down)],
        }
    }

    fn batches(&self) -> usize {
        self.batches.load(Ordering::Relaxed)
    }
}

/// Passes datagrams on, except for lost ones. The loopback hands a batch over as it was sent.
async fn pump(
    socket: &UdpSocket,
    loses: Loses,
    batches: &AtomicUsize,
    pass: impl Fn(&[u8], SocketAddr),
) {
    let state = UdpSocketState::new(socket.into()).unwrap();
    let (mut buffer, mut dice) = (vec![0; 1 << 16], fastrand::Rng::with_seed(1));
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
        let is_quic = buffer[0] & 0xc0 != 0;
        batches.fetch_add(usize::from(is_batch && is_quic), Ordering::Relaxed);
        let datagrams = buffer[..meta.len].chunks(meta.stride.max(1));
        for (index, datagram) in datagrams.enumerate() {
            let is_lost = match loses {
                Loses::Nothing => false,
                Loses::AllButTheFirst => is_batch && index > 0,
                Loses::Whole => is_batch,
                Loses::OneInFive => dice.u8(..5) == 0,
            };
            if !is_lost {
                pass(datagram, meta.addr);
            }
        }
    }
}

//! Readers that stop, and what goes on beside them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};
use tp_transport::{Flow, PathChoice, Peer, RecvHalf, SendHalf, Tunnel};

use crate::{
    flows::{greet, serve_greeter},
    support::{Lab, flow_pair, pattern, within, within_limit},
};

/// Small enough to be of one flow's floor.
const PIECE: usize = 4 << 10;
const STALLED: usize = 200;
/// More than any window lets all of them send: see `quic.rs`.
const UPLOAD: usize = 2 << 20;
const DOWNLOAD: usize = 4 << 20;
const CLIENT_BUDGET: u64 = 256 << 20;
const MANAGER_BUDGET: u64 = 128 << 20;
/// Of work that a person waits for.
const AT_ONCE: Duration = Duration::from_secs(1);
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_in_both_directions_hold_up_nobody_else_and_go_on_when_they_read() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let mut uploads = Stalled::start(&tunnel, &peer, UPLOAD, |near, far| (near, far)).await;
    let mut downloads = Stalled::start(&tunnel, &peer, DOWNLOAD, |near, far| (far, near)).await;
    uploads.have_stopped().await;
    downloads.have_stopped().await;
    let (up, down) = (uploads.sent(), downloads.sent());
    assert!(up <= MANAGER_BUDGET, "{up} bytes wait at the manager");
    assert!(down <= CLIENT_BUDGET, "{down} bytes wait at the client");
    assert!(peer.stats().credit_held <= MANAGER_BUDGET);
    assert!(tunnel.stats().credit_held <= CLIENT_BUDGET);

    let begun = Instant::now();
    let dialled = within("dial", echo_once(&tunnel, &peer)).await;
    assert_eq!(&dialled[..], b"there and back");
    let serve = serve_greeter(peer.clone());
    assert_eq!(greet(&tunnel).await, "hello 7.0");
    let took = begun.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    serve.abort();

    within_limit(TRANSFER_TIMEOUT, "the uploads", uploads.read_all()).await;
    within_limit(TRANSFER_TIMEOUT, "the downloads", downloads.read_all()).await;
    assert_eq!(uploads.sent(), (STALLED * UPLOAD) as u64);
    assert_eq!(downloads.sent(), (STALLED * DOWNLOAD) as u64);
}

#[tokio::test]
async fn a_stalled_flow_that_ends_in_a_reset_leaves_its_credit_to_others() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    for _ in 0..3 {
        let mut stalled = Stalled::start(&tunnel, &peer, UPLOAD, |near, far| (near, far)).await;
        stalled.have_stopped().await;
        assert!(peer.stats().credit_held > 0);

        drop(stalled);

        within("the release of all credit", async {
            while peer.stats().credit_held + tunnel.stats().credit_held > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    assert_eq!(&echo_once(&tunnel, &peer).await[..], b"there and back");
}

#[tokio::test]
async fn as_many_flows_as_there_may_be_all_get_through_while_most_are_stalled() {
    const MANY: usize = 4000;

    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let size = 64 << 10;
    let mut flows = Vec::new();
    for _ in 0..MANY {
        flows.push(flow_pair(&tunnel, &peer).await);
    }
    let mut stalled = Stalled::of(flows, size, |near, far| (near, far));
    stalled.have_stopped().await;
    assert!(stalled.sent() <= MANAGER_BUDGET);

    within("an echo", echo_once(&tunnel, &peer)).await;
    within_limit(TRANSFER_TIMEOUT, "all of them", stalled.read_all()).await;

    assert_eq!(stalled.sent(), (MANY * size) as u64);
}

async fn echo_once(tunnel: &Tunnel, peer: &Peer) -> Vec<u8> {
    let (near, far) = flow_pair(tunnel, peer).await;
    let ((mut send, mut recv), (mut far_send, mut far_recv)) = (near.split(), far.split());
    send.write_all(b"there and back").await.unwrap();
    let chunk = far_recv.read_chunk(100).await.unwrap().unwrap();
    far_send.write_chunk(chunk).await.unwrap();

    recv.read_chunk(100).await.unwrap().unwrap().to_vec()
}

/// Flows whose senders have `size` bytes each, and whose receivers do not read.
struct Stalled {
    size: usize,
    sent: Arc<AtomicU64>,
    senders: JoinSet<()>,
    /// With the halves of the other direction, so that nothing ends.
    receivers: Vec<(RecvHalf, SendHalf, RecvHalf)>,
}

impl Stalled {
    async fn start(
        tunnel: &Tunnel,
        peer: &Peer,
        size: usize,
        order: fn(Flow, Flow) -> (Flow, Flow),
    ) -> Self {
        let mut flows = Vec::new();
        for _ in 0..STALLED {
            flows.push(flow_pair(tunnel, peer).await);
        }

        Self::of(flows, size, order)
    }

    fn of(flows: Vec<(Flow, Flow)>, size: usize, order: fn(Flow, Flow) -> (Flow, Flow)) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        let mut receivers = Vec::new();
        let data = pattern(0, size);
        for (near, far) in flows {
            let (from, to) = order(near, far);
            let ((mut send, back), (answer, recv)) = (from.split(), to.split());
            receivers.push((recv, answer, back));
            let (sent, data) = (Arc::clone(&sent), data.clone());
            senders.spawn(async move {
                for start in (0..size).step_by(PIECE) {
                    let piece = data.slice(start..size.min(start + PIECE));
                    let length = piece.len() as u64;
                    if send.write_chunk(piece).await.is_err() {
                        return;
                    }
                    sent.fetch_add(length, Ordering::Relaxed);
                }
                send.finish();
                // Until it is read, or given up.
                let _ = send.stopped().await;
            });
        }

        Self {
            size,
            sent,
            senders,
            receivers,
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Resolves when no sender has got on for a while.
    async fn have_stopped(&mut self) {
        within("the senders' stop", async {
            let mut before = 0;
            while self.sent() > before || before == 0 {
                before = self.sent();
                sleep(Duration::from_millis(300)).await;
            }
        })
        .await;
    }

    /// All receivers read to their ends, and compare.
    async fn read_all(&mut self) {
        let mut readers = JoinSet::new();
        let expected = pattern(0, self.size);
        for (mut recv, answer, back) in self.receivers.drain(..) {
            let expected = expected.clone();
            readers.spawn(async move {
                let mut position = 0;
                while let Some(chunk) = recv.read_chunk(1 << 20).await.unwrap() {
                    let end = position + chunk.len();
                    assert!(chunk == expected[position..end], "at {position}");
                    position = end;
                }
                drop((answer, back));
                position
            });
        }
        while let Some(read) = readers.join_next().await {
            assert_eq!(read.unwrap(), self.size);
        }
        while self.senders.join_next().await.is_some() {}
    }
}

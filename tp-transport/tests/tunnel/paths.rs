use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tp_transport::{ClosedReason, Dialed, OpenError, PathChoice, PathKind, Peer, Tunnel};

use crate::support::{
    Lab, echo, exchange, flow_pair, on_path, pattern,
    relay::{Relay, connected_to},
    target, within,
};

#[tokio::test]
async fn a_tunnel_moves_to_udp_and_the_server_follows() {
    let mut lab = Lab::new();

    let (tunnel, peer) = lab.udp_pair().await;
    let _echo = echo(peer.clone());
    exchange(&tunnel, 1 << 20, || {}).await;

    assert_eq!(tunnel.path().borrow().remote, Some(lab.udp));
    let mut server_path = peer.path();
    let followed = server_path.wait_for(|status| status.path == PathKind::Udp);
    within("the server's path", followed).await.unwrap();
}

#[tokio::test]
async fn a_transfer_survives_the_move_to_udp_byte_for_byte() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::Auto).await;
    let _echo = echo(peer);
    let udp = lab.udp;

    let mover = tunnel.clone();
    exchange(&tunnel, 192 << 20, move || mover.set_candidates(vec![udp])).await;

    let status = tunnel.path().borrow().clone();
    assert_eq!((status.path, status.switches), (PathKind::Udp, 1));
}

#[tokio::test]
async fn a_transfer_survives_udp_falling_silent() {
    let mut lab = Lab::new();
    let (tunnel, peer, path) = cuttable_pair(&mut lab).await;
    let _echo = echo(peer);

    let passes = Arc::clone(&path.passes);
    exchange(&tunnel, 96 << 20, move || {
        passes.store(false, Ordering::Relaxed);
    })
    .await;

    let status = tunnel.path().borrow().clone();
    assert_eq!((status.path, status.switches), (PathKind::Stream, 2));
    assert!(status.reason.contains("fell silent"), "{}", status.reason);
}

#[tokio::test]
async fn silence_on_udp_is_noticed_soon() {
    let mut lab = Lab::new();
    let (tunnel, peer, path) = cuttable_pair(&mut lab).await;
    let _echo = echo(peer);

    let started = Instant::now();
    path.passes.store(false, Ordering::Relaxed);
    exchange(&tunnel, 1000, || {}).await;

    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(tunnel.path().borrow().path, PathKind::Stream);
}

#[tokio::test]
async fn udp_alone_carries_on_when_the_stream_ends() {
    let mut lab = Lab::new();
    let (tunnel, peer, link) = breakable_pair(&mut lab, PathChoice::Auto).await;
    let _echo = echo(peer);
    tunnel.set_candidates(vec![lab.udp]);
    on_path(&tunnel, PathKind::Udp).await;

    link.abort();
    within("the end of the link", tunnel.link_ended()).await;
    exchange(&tunnel, 4 << 20, || {}).await;

    assert_eq!(tunnel.path().borrow().path, PathKind::Udp);
}

#[tokio::test]
async fn a_lost_stream_can_be_replaced_mid_transfer() {
    let mut lab = Lab::new();
    let (tunnel, peer, link) = breakable_pair(&mut lab, PathChoice::StreamOnly).await;
    let _echo = echo(peer);
    let next = lab.link();

    let replaced = async {
        within("the end of the link", tunnel.link_ended()).await;
        within("another link", tunnel.replace_link(next))
            .await
            .unwrap();
    };
    let transfer = exchange(&tunnel, 32 << 20, move || link.abort());
    tokio::join!(transfer, replaced);

    assert!(
        timeout(Duration::from_millis(100), tunnel.closed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn silence_on_both_paths_means_that_the_replica_is_gone() {
    let mut lab = Lab::new();
    let (tunnel, _peer, link) = breakable_pair(&mut lab, PathChoice::StreamOnly).await;
    let started = Instant::now();

    link.abort();
    let reason = within("closed", tunnel.closed()).await;

    assert_eq!(reason, ClosedReason::ReplicaGone);
    let took = started.elapsed();
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(5),
        "{took:?}"
    );
    let error = tunnel.dial(target()).await.unwrap_err();
    assert_eq!(error, OpenError::Closed(ClosedReason::ReplicaGone));
}

#[tokio::test]
async fn where_only_udp_is_allowed_dials_wait_for_it() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::UdpOnly).await;
    let _echo = echo(peer);

    let dial = tunnel.dial(target());
    let candidates = async {
        // Time for the dial to go the wrong way.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(tunnel.path().borrow().path, PathKind::Stream);
        tunnel.set_candidates(vec![lab.udp]);
    };
    let (dialed, ()) = within("dial", async { tokio::join!(dial, candidates) }).await;

    assert!(matches!(dialed, Ok(Dialed::Connected(_))));
    assert_eq!(tunnel.path().borrow().path, PathKind::Udp);
}

#[tokio::test]
async fn where_only_udp_is_allowed_and_does_not_work_a_dial_says_so() {
    let mut lab = Lab::new();
    let (tunnel, _peer) = lab.pair(PathChoice::UdpOnly).await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    tunnel.set_candidates(vec![address]);

    let error = within("dial", tunnel.dial(target())).await.unwrap_err();

    let OpenError::NoUdp(reason) = &error else {
        panic!("{error}");
    };
    assert!(reason.contains(&address.to_string()), "{reason}");
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_up_and_not_the_memory() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (near, far) = flow_pair(&tunnel, &peer).await;
    let (mut send, _recv) = near.split();
    let (_far_send, mut far_recv) = far.split();
    let chunk = pattern(0, 1 << 20);
    let mut sent = 0;

    // Nobody reads: the windows fill, and no more is taken.
    while timeout(Duration::from_secs(1), send.write_all(&chunk))
        .await
        .is_ok()
    {
        sent += chunk.len();
        assert!(sent <= 40 << 20, "{sent} bytes without a reader");
    }
    // A small request on another flow still passes.
    let _echo = echo(peer);
    exchange(&tunnel, 1000, || {}).await;

    let mut received = 0;
    while received < sent {
        let read = within("the reader", far_recv.read_chunk(1 << 20)).await;
        received += read.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn readers_that_have_stopped_do_not_starve_the_others() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let chunk = pattern(0, 1 << 20);
    let mut stopped = Vec::new();
    for _ in 0..5 {
        let (near, far) = flow_pair(&tunnel, &peer).await;
        let (mut send, recv) = far.split();
        while timeout(Duration::from_millis(200), send.write_all(&chunk))
            .await
            .is_ok()
        {}
        stopped.push((near, send, recv));
    }

    let _echo = echo(peer);
    exchange(&tunnel, 1 << 20, || {}).await;
}

/// Both ends of an admitted session, and what ends the byte stream between them.
async fn breakable_pair(lab: &mut Lab, choice: PathChoice) -> (Tunnel, Peer, AbortHandle) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let link = lab.attach(far);
    let connecting = Tunnel::connect(near, lab.config(choice));
    let tunnel = within("connect", connecting).await.unwrap();
    let peer = within("accept", lab.server.accept()).await.unwrap();

    (tunnel, peer, link)
}

/// A UDP path that can be cut.
struct Cuttable {
    passes: Arc<AtomicBool>,
    _relay: Relay,
}

/// Both ends of an admitted session on such a path.
async fn cuttable_pair(lab: &mut Lab) -> (Tunnel, Peer, Cuttable) {
    let (tunnel, peer) = lab.pair(PathChoice::Auto).await;
    let passes = Arc::new(AtomicBool::new(true));
    let open = Arc::clone(&passes);
    let far = Arc::new(connected_to(lab.udp).await);
    let relay = Relay::start(far, move |_, _| open.load(Ordering::Relaxed)).await;
    tunnel.set_candidates(vec![relay.address]);
    on_path(&tunnel, PathKind::Udp).await;

    let path = Cuttable {
        passes,
        _relay: relay,
    };
    (tunnel, peer, path)
}

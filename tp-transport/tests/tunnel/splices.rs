use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;
use tp_core::keep_alive::Segments;
use tp_transport::{
    CloseCode, PathChoice, Peer, ResetCode, SpliceCounters, SpliceEnd, Tunnel, keep_alive, splice,
    splice_observed,
};

use crate::support::{Lab, flow_pair, pattern, within};

#[tokio::test]
async fn a_transfer_passes_in_both_directions_and_ends_cleanly() {
    let mut ends = Ends::new().await;
    let sent = pattern(0, 8 << 20);
    let expected = sent.clone();

    let (mut app_read, mut app_write) = ends.app.split();
    let (mut target_read, mut target_write) = ends.target.split();
    let upload = async {
        app_write.write_all(&sent).await.unwrap();
        app_write.shutdown().await.unwrap();
    };
    let echo = async {
        tokio::io::copy(&mut target_read, &mut target_write)
            .await
            .unwrap();
        target_write.shutdown().await.unwrap();
    };
    let download = async {
        let mut received = Vec::new();
        app_read.read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), (), received) = within("the transfer", async {
        tokio::join!(upload, echo, download)
    })
    .await;

    assert!(received == expected);
    let [near, far] = within("the end", ends.splices()).await;
    assert_eq!(near, (SpliceEnd::Finished, 8 << 20, 8 << 20));
    assert_eq!(far, (SpliceEnd::Finished, 8 << 20, 8 << 20));
}

#[tokio::test]
async fn an_urgent_byte_stays_in_its_place_in_both_directions() {
    let mut ends = Ends::new().await;

    keeps_the_urgent_byte(&mut ends.app, &mut ends.target).await;
    keeps_the_urgent_byte(&mut ends.target, &mut ends.app).await;
}

async fn keeps_the_urgent_byte(from: &mut TcpStream, to: &mut TcpStream) {
    SockRef::from(&*to).set_out_of_band_inline(true).unwrap();

    from.write_all(b"abc").await.unwrap();
    assert_eq!(SockRef::from(&*from).send_out_of_band(b"!").unwrap(), 1);
    from.write_all(b"def").await.unwrap();

    let mut received = [0; 7];
    let read = within("all bytes", to.read_exact(&mut received)).await;
    read.unwrap();
    assert_eq!(&received, b"abc!def");
}

#[tokio::test]
async fn a_reset_by_the_target_resets_the_application() {
    let mut ends = Ends::new().await;
    ends.begin_download().await;

    reset(std::mem::replace(&mut ends.target, unconnected().await));

    assert_reset(&mut ends.app).await;
    let [near, far] = within("the end", ends.splices()).await;
    assert_eq!(near.0, SpliceEnd::FlowReset(ResetCode::Reset));
    assert_eq!(far.0, SpliceEnd::TcpReset);
}

#[tokio::test]
async fn a_reset_by_the_application_resets_the_target() {
    let mut ends = Ends::new().await;

    reset(std::mem::replace(&mut ends.app, unconnected().await));

    assert_reset(&mut ends.target).await;
    let [near, far] = within("the end", ends.splices()).await;
    assert_eq!(near.0, SpliceEnd::TcpReset);
    assert_eq!(far.0, SpliceEnd::FlowReset(ResetCode::Reset));
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_noticed_too() {
    let mut ends = Ends::new().await;
    ends.app.shutdown().await.unwrap();
    let end = within("the half-close", ends.target.read(&mut [0; 8])).await;
    assert_eq!(end.unwrap(), 0);

    reset(std::mem::replace(&mut ends.app, unconnected().await));

    // The target has read the end already: a write tells it.
    within("the target's reset", async {
        while ends.target.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_tunnel_resets_both_connections_mid_transfer() {
    let mut ends = Ends::new().await;
    ends.begin_download().await;

    ends.tunnel.close(CloseCode::Quit).await;

    assert_reset(&mut ends.app).await;
    assert_reset(&mut ends.target).await;
    let [near, far] = within("the end", ends.splices()).await;
    assert_eq!(near.0, SpliceEnd::TunnelLost);
    assert_eq!(far.0, SpliceEnd::TunnelLost);
}

#[tokio::test]
async fn a_dropped_splice_resets_both_connections() {
    let mut ends = Ends::new().await;
    ends.app.write_all(b"x").await.unwrap();
    within("data", ends.target.read_exact(&mut [0]))
        .await
        .unwrap();

    ends.near.abort();

    assert_reset(&mut ends.app).await;
    assert_reset(&mut ends.target).await;
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_after_the_last_byte() {
    let mut ends = Ends::new().await;
    let sent = pattern(0, 6 << 20);

    // The application does not read; the target sends all and closes.
    let expected = sent.clone();
    let target = std::mem::replace(&mut ends.target, unconnected().await);
    let upload = tokio::spawn(async move {
        let mut target = target;
        target.write_all(&sent).await.unwrap();
        target.shutdown().await.unwrap();
        let _ = target.read(&mut [0; 8]).await;
    });
    // Time for the splice to give up on the reader too soon.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut received = Vec::new();
    within("the late reader", ends.app.read_to_end(&mut received))
        .await
        .unwrap();

    assert!(received == expected);
    drop(std::mem::replace(&mut ends.app, unconnected().await));
    within("the upload", upload).await.unwrap();
    let [near, far] = within("the end", ends.splices()).await;
    assert_eq!((near.0, far.0), (SpliceEnd::Finished, SpliceEnd::Finished));
}

type Ended = (SpliceEnd, u64, u64);

/// The kernel's counters of a connection that its application probes between any two reads.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the kernel may have nothing to tell, and the splice asks either"
)]
fn probed_once_more(_: &TcpStream) -> Option<Segments> {
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let probes = PROBES.fetch_add(1, Ordering::Relaxed);

    Some(Segments {
        received: probes,
        sent: probes,
        data_received: 0,
        data_sent: 0,
    })
}

#[tokio::test]
async fn a_connection_that_its_application_probes_is_probed_as_often_at_the_other_end() {
    let mut lab = Lab::new();
    let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
    let (near_flow, far_flow) = flow_pair(&tunnel, &peer).await;
    let ((_app, app_side), (target_side, _target)) = (tcp_pair().await, tcp_pair().await);
    keep_alive(&target_side).unwrap();
    let settings = socket2::Socket::from(target_side.as_fd().try_clone_to_owned().unwrap());
    assert!(settings.keepalive().unwrap());
    assert_eq!(settings.tcp_keepalive_time().unwrap().as_secs(), 30);
    let counters = SpliceCounters::default();

    let near = splice_observed(app_side, near_flow, &counters, probed_once_more);
    let far = splice(target_side, far_flow, &counters);
    let told = async {
        // Found at the second poll, a second after the first.
        while settings.tcp_keepalive_time().unwrap().as_secs() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the application's pace", async {
        tokio::select! {
            () = told => {}
            end = near => panic!("{end:?}"),
            end = far => panic!("{end:?}"),
        }
    })
    .await;

    assert_eq!(settings.tcp_keepalive_interval().unwrap().as_secs(), 1);
    assert_eq!(settings.tcp_keepalive_retries().unwrap(), 3);
}

/// An application and a target with the tunnel between them.
struct Ends {
    app: TcpStream,
    target: TcpStream,
    near: AbortOnDropHandle<Ended>,
    far: AbortOnDropHandle<Ended>,
    tunnel: Tunnel,
    _peer: Peer,
    _lab: Lab,
}

impl Ends {
    async fn new() -> Self {
        let mut lab = Lab::new();
        let (tunnel, peer) = lab.pair(PathChoice::StreamOnly).await;
        let (near_flow, far_flow) = flow_pair(&tunnel, &peer).await;
        let (app, app_side) = tcp_pair().await;
        let (target_side, target) = tcp_pair().await;
        let run = |tcp, flow| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                let counters = SpliceCounters::default();
                let end = splice(tcp, flow, &counters).await;
                let sent = counters.sent.load(Ordering::Relaxed);
                (end, sent, counters.received.load(Ordering::Relaxed))
            }))
        };

        Self {
            app,
            target,
            near: run(app_side, near_flow),
            far: run(target_side, far_flow),
            tunnel,
            _peer: peer,
            _lab: lab,
        }
    }

    /// Some bytes have come from the target, and neither end has closed.
    async fn begin_download(&mut self) {
        self.target.write_all(b"partial").await.unwrap();
        let mut partial = [0; 7];
        let read = within("data", self.app.read_exact(&mut partial)).await;
        read.unwrap();
    }

    async fn splices(self) -> [Ended; 2] {
        [self.near.await.unwrap(), self.far.await.unwrap()]
    }
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (connected, accepted) = tokio::join!(connecting, listener.accept());

    (connected.unwrap(), accepted.unwrap().0)
}

/// Takes the place of a connection that a test has taken out.
async fn unconnected() -> TcpStream {
    tcp_pair().await.0
}

fn reset(tcp: TcpStream) {
    SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

async fn assert_reset(tcp: &mut TcpStream) {
    let mut buffer = [0; 1024];
    let error = within("a reset", async {
        loop {
            match tcp.read(&mut buffer).await {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        }
    })
    .await;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

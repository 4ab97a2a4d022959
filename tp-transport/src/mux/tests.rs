//! The effect of a flood of the UDP port on the other clients of the endpoint.

use std::{
    future::poll_fn,
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::timeout;

use super::*;
use crate::{probe::MIN_SIZE, quic::link_address};

/// A probe without a key, and what may be QUIC's.
const GARBAGE: [u8; MIN_SIZE] = [0x10; MIN_SIZE];
const GENUINE: [u8; 60] = [0x40; 60];

const FLOOD: usize = 100;
/// Far more than may be read of it in one turn, far less than there is.
const MANY: usize = FLOOD / 4;

/// After each datagram of the flood that is read comes the next one, and after the last a genuine one.
#[derive(Debug)]
struct Flooded {
    flood: UdpSocket,
    read: AtomicUsize,
}

impl Flooded {
    fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }
}

impl Side for Flooded {
    fn route(&self, _: SocketAddr) -> Route {
        Route::Nowhere
    }

    fn sent(&self, _: usize) {}

    fn admit_udp(&self, from: SocketAddr) -> Option<SocketAddr> {
        Some(from)
    }

    fn admit_link(&self, link: &Link) -> SocketAddr {
        link.address()
    }

    fn udp_probe(&self, _: &[u8], _: SocketAddr) -> Option<Answer> {
        let read = self.read.fetch_add(1, Ordering::Relaxed) + 1;
        let next: &[u8] = if read < FLOOD { &GARBAGE } else { &GENUINE };
        self.flood.send(next).unwrap();

        None
    }
}

#[tokio::test]
async fn a_flood_of_the_udp_port_holds_up_no_byte_stream() {
    let mux = flooded().await;
    let link = Link::new(link_address(1));

    // In one of two turns the port is asked first.
    for turn in 1..=2 {
        let before = mux.side().read();
        let mut batch = vec![Bytes::from_static(&GENUINE)];
        mux.deliver(&link, &mut batch, |_| {});
        let received = poll_fn(|cx| Poll::Ready(receive(&mux, cx))).await;

        assert_eq!(received, Poll::Ready(link.address()), "turn {turn}");
        assert!(mux.side().read() - before < MANY, "turn {turn}");
    }
    assert!(mux.side().read() > 0, "the port was asked");
}

#[tokio::test]
async fn what_comes_behind_a_flood_is_read_though_nothing_comes_after_it() {
    let mux = flooded().await;

    let received = poll_fn(|cx| receive(&mux, cx));
    let received = timeout(Duration::from_secs(2), received).await;

    assert_eq!(received, Ok(mux.side().flood.local_addr().unwrap()));
    assert_eq!(mux.side().read(), FLOOD);
}

/// A socket at whose port the flood has just begun.
async fn flooded() -> Arc<Mux<Flooded>> {
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let flood = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    flood.connect(port.local_addr().unwrap()).unwrap();
    let read = AtomicUsize::new(0);
    let mux = Mux::new(
        Flooded { flood, read },
        Some(Udp::from_socket(port).unwrap()),
    );

    // From then on tokio knows that the socket can be read.
    mux.side().flood.send(&GENUINE).unwrap();
    poll_fn(|cx| receive(&mux, cx)).await;
    mux.side().flood.send(&GARBAGE).unwrap();

    mux
}

/// The source of the next datagram for QUIC.
fn receive(mux: &Mux<Flooded>, cx: &mut Context<'_>) -> Poll<SocketAddr> {
    let mut buffer = vec![0; 64 << 10];
    let mut meta = [RecvMeta::default()];
    let bufs = &mut [IoSliceMut::new(&mut buffer)];
    let received = mux.poll_recv(cx, bufs, &mut meta);

    received.map(|received| {
        assert_eq!(received.unwrap(), 1);
        meta[0].addr
    })
}

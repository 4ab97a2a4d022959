//! The socket of the UDP path.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Mutex, MutexGuard},
    task::{Context, Poll},
};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::Notify};
use tp_process::sync::lock;

use super::batch::{Batch, MAX_BATCH};

/// Bytes requested from the kernel, in each direction.
const BUFFER_SIZE: usize = 4 << 20;
/// Batches being filled at once. Sessions that share one take turns.
const BATCHES: usize = 16;

#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    batches: [Mutex<Batch>; BATCHES],
    /// A batch waits for [`Udp::flush`].
    waiting: Notify,
    /// True for an IPv6 socket, which takes IPv4 addresses mapped only.
    is_ipv6: bool,
    port: u16,
    receive_buffer: u64,
    send_buffer: u64,
}

impl Udp {
    /// A socket on any port, for both families where the machine has IPv6.
    pub(crate) fn unbound() -> io::Result<Self> {
        Self::from_socket(
            dual_stack().or_else(|_| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?,
        )
    }

    pub(crate) fn from_socket(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let (receive_buffer, send_buffer) = enlarge_buffers(&socket)?;
        let address = socket.local_addr()?;

        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            state,
            batches: Default::default(),
            waiting: Notify::new(),
            is_ipv6: address.is_ipv6(),
            port: address.port(),
            receive_buffer,
            send_buffer,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn receive_buffer(&self) -> u64 {
        self.receive_buffer
    }

    pub(crate) fn send_buffer(&self) -> u64 {
        self.send_buffer
    }

    /// Sends a transmit, or takes it into a batch that [`Udp::flush`] sends within moments; with
    /// `batched` unset, sends its datagrams one by one. Where there is room for a part only, QUIC
    /// repeats all of it, and its other end discards what it has seen.
    pub(crate) fn try_send(
        &self,
        transmit: &Transmit<'_>,
        remote: SocketAddr,
        batched: bool,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.native(remote),
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        let mut batch = self.batch(remote);
        if !batched || !batch.takes(&transmit) {
            self.send_batch(&mut batch)?;
            if !batched || !Batch::pays(&transmit) {
                drop(batch);
                return self.send(&transmit, batched);
            }
        }
        batch.push(&transmit);
        let is_complete = batch.is_full() || !Batch::pays(&transmit);
        if !is_complete || self.send_batch(&mut batch).is_err() {
            self.waiting.notify_one();
        }

        Ok(())
    }

    /// Sends batches that were not filled, for as long as it is polled.
    pub(crate) async fn flush(&self) {
        loop {
            self.waiting.notified().await;
            // Other ready tasks go first: they may have more for the same batch.
            let mut has_yielded = false;
            poll_fn(|cx| match std::mem::replace(&mut has_yielded, true) {
                true => Poll::Ready(()),
                false => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            })
            .await;
            for batch in &self.batches {
                loop {
                    let sent = self.send_batch(&mut lock(batch));
                    if sent.is_ok() || self.socket.writable().await.is_err() {
                        break;
                    }
                }
            }
        }
    }

    fn batch(&self, remote: SocketAddr) -> MutexGuard<'_, Batch> {
        lock(&self.batches[usize::from(remote.port()) % BATCHES])
    }

    /// Leaves the batch empty, or unchanged if the socket has no room.
    fn send_batch(&self, batch: &mut Batch) -> io::Result<()> {
        if let Some(transmit) = batch.transmit() {
            self.send(&transmit, true)?;
            batch.clear();
        }

        Ok(())
    }

    /// Fails only if the socket has no room: any other error counts as a loss in the network.
    fn send(&self, transmit: &Transmit<'_>, batched: bool) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        let size = size.max(1);
        let per_send = match batched && self.max_transmit_segments() > 1 {
            true => (MAX_BATCH / size).max(1) * size,
            false => size,
        };
        for contents in transmit.contents.chunks(per_send) {
            let part = Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: Some(size).filter(|size| contents.len() > *size),
                src_ip: None,
            };
            self.socket.try_io(Interest::WRITABLE, || {
                self.state.send((&self.socket).into(), &part)
            })?;
        }

        Ok(())
    }

    /// Sends probes of `size` bytes together, at once or not at all: probes may be lost.
    pub(crate) fn send_probes(&self, probes: &[u8], size: usize, remote: SocketAddr) {
        let transmit = Transmit {
            destination: self.native(remote),
            ecn: None,
            contents: probes,
            segment_size: Some(size).filter(|size| probes.len() > *size),
            src_ip: None,
        };
        if let Err(error) = self.send(&transmit, true) {
            tracing::trace!(%error, "Probes were not sent");
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.socket.poll_recv_ready(cx))?;
            let received = self.socket.try_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), bufs, meta)
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }

    pub(crate) fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn native(&self, remote: SocketAddr) -> SocketAddr {
        match remote {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        }
    }
}

/// The kernel's settings of a UDP socket such as a tunnel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpFacts {
    /// Bytes of payload that its receive buffer holds.
    pub receive_buffer: u64,
    /// Bytes of payload that its send buffer holds.
    pub send_buffer: u64,
    /// Bytes requested from the kernel, for each buffer.
    pub wanted_buffer: u64,
    /// Packets that the kernel takes at once.
    pub batch: usize,
}

/// Opens such a socket, reads its settings, and closes it.
///
/// # Errors
///
/// If the machine provides no UDP socket.
pub fn udp_facts() -> io::Result<UdpFacts> {
    let udp = Udp::unbound()?;

    Ok(UdpFacts {
        receive_buffer: udp.receive_buffer(),
        send_buffer: udp.send_buffer(),
        wanted_buffer: BUFFER_SIZE as u64,
        batch: udp.max_transmit_segments(),
    })
}

/// The address with an IPv4-mapped IPv6 address as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn dual_stack() -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0).into())?;

    Ok(socket.into())
}

/// Requests large buffers, past the system's limit where that is allowed, and returns the granted
/// sizes, in bytes of payload (the kernel adds as much for its own overhead).
fn enlarge_buffers(socket: &std::net::UdpSocket) -> io::Result<(u64, u64)> {
    use rustix::net::sockopt;

    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, BUFFER_SIZE)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_SIZE).is_err() {
        sockopt::set_socket_send_buffer_size(socket, BUFFER_SIZE)?;
    }
    let receive = sockopt::socket_recv_buffer_size(socket)? / 2;
    let send = sockopt::socket_send_buffer_size(socket)? / 2;

    Ok((receive as u64, send as u64))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SIZE: usize = 1452;
    const FULL: usize = 10;

    #[tokio::test]
    async fn a_full_transmit_is_sent_though_nothing_follows_it() {
        let (udp, far) = pair().await;
        let full = vec![1; FULL * SIZE];

        send(&udp, &far, &full);
        let received = tokio::select! {
            received = receive(&far, FULL) => received,
            () = udp.flush() => Vec::new(),
        };

        assert_eq!(received, vec![(1, SIZE); FULL]);
    }

    #[tokio::test]
    async fn what_follows_a_full_transmit_arrives_behind_it_at_once() {
        let (udp, far) = pair().await;
        let (full, last) = (vec![1; FULL * SIZE], vec![2; SIZE + 7]);

        send(&udp, &far, &full);
        send(&udp, &far, &last);

        let mut expected = vec![(1, SIZE); FULL];
        expected.extend([(2, SIZE), (2, 7)]);
        assert_eq!(receive(&far, FULL + 2).await, expected);
    }

    #[tokio::test]
    async fn what_does_not_join_a_batch_is_sent_behind_it() {
        let (udp, far) = pair().await;
        let full = vec![1; FULL * SIZE];

        send(&udp, &far, &full);
        udp.try_send(&whole(&far, &[3; SIZE + 1]), address(&far), true)
            .unwrap();

        let mut expected = vec![(1, SIZE); FULL];
        expected.push((3, SIZE + 1));
        assert_eq!(receive(&far, FULL + 1).await, expected);
    }

    async fn pair() -> (Udp, UdpSocket) {
        let near = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();

        let udp = Udp::from_socket(near).unwrap();
        udp.writable().await.unwrap();

        (udp, far)
    }

    fn address(far: &UdpSocket) -> SocketAddr {
        far.local_addr().unwrap()
    }

    fn whole<'a>(far: &UdpSocket, contents: &'a [u8]) -> Transmit<'a> {
        Transmit {
            destination: address(far),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }

    fn send(udp: &Udp, far: &UdpSocket, contents: &[u8]) {
        let transmit = Transmit {
            segment_size: Some(SIZE),
            ..whole(far, contents)
        };
        udp.try_send(&transmit, address(far), true).unwrap();
    }

    /// First byte and length of each datagram.
    async fn receive(far: &UdpSocket, count: usize) -> Vec<(u8, usize)> {
        let mut received = Vec::new();
        let mut buffer = [0; 2048];
        for _ in 0..count {
            let arrival = timeout(Duration::from_secs(5), far.recv(&mut buffer)).await;
            let length = arrival.expect("a datagram arrives").unwrap();
            received.push((buffer[0], length));
        }

        received
    }
}

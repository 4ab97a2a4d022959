//! One socket for QUIC over both paths.
//!
//! [`Mux`] moves datagrams and does not know sessions. Its [`Side`] routes datagrams, filters those
//! from UDP for QUIC, and handles probes: [`client`] for the session, [`server`] for the manager.

mod batch;
pub(crate) mod client;
pub(crate) mod drivers;
pub(crate) mod server;
pub(crate) mod udp;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tp_process::sync;

use crate::{
    framed::{Link, Received},
    probe::{Form, form},
    quic::RECEIVE_SEGMENTS,
};
use udp::Udp;

/// Datagrams in one transmit when there is no UDP socket to limit it.
const LINK_SEGMENTS: usize = 16;

/// The destination of a datagram.
pub(crate) enum Route {
    Link(Arc<Link>),
    Udp {
        remote: SocketAddr,
        /// True if several datagrams may be sent together.
        batched: bool,
    },
    /// The path is gone: as if the datagram were lost in the network.
    Nowhere,
}

/// The differences between the two ends.
pub(crate) trait Side: fmt::Debug + Send + Sync + 'static {
    fn route(&self, destination: SocketAddr) -> Route;

    /// QUIC sent so many bytes.
    fn sent(&self, size: usize);

    /// The address under which QUIC sees datagrams by UDP from `from`; `None` to drop them.
    fn admit_udp(&self, from: SocketAddr) -> Option<SocketAddr>;

    /// The address under which QUIC sees datagrams of a byte stream.
    fn admit_link(&self, link: &Link) -> SocketAddr;

    /// Handles a probe that came by UDP from `from`; an answer goes back there.
    fn udp_probe(&self, probe: &[u8], from: SocketAddr) -> Option<Answer>;
}

/// Probes to be sent together, each of `size` bytes.
pub(crate) struct Answer {
    pub(crate) probes: Vec<u8>,
    pub(crate) size: usize,
}

/// Batches without a datagram for QUIC that are read in one turn of the endpoint.
const GARBAGE_ROUNDS: usize = 4;

/// The socket that QUIC is given.
pub(crate) struct Mux<S> {
    side: S,
    udp: Option<Udp>,
    received: Mutex<ReceiveQueue>,
}

#[derive(Default)]
struct ReceiveQueue {
    datagrams: VecDeque<Received>,
    /// The endpoint's task.
    waker: Option<Waker>,
    /// The path whose turn it is when both have data.
    udp_first: bool,
}

impl<S: Side> Mux<S> {
    pub(crate) fn new(side: S, udp: Option<Udp>) -> Arc<Self> {
        Arc::new(Self {
            side,
            udp,
            received: Mutex::default(),
        })
    }

    pub(crate) fn side(&self) -> &S {
        &self.side
    }

    pub(crate) fn udp(&self) -> Option<&Udp> {
        self.udp.as_ref()
    }

    /// Sends the batches that the UDP socket holds back, for as long as it is polled.
    pub(crate) async fn flush(self: Arc<Self>) {
        if let Some(udp) = &self.udp {
            udp.flush().await;
        }
    }

    /// Queues datagrams of a byte stream for QUIC; probes go to `on_probe`. Returns the number of
    /// bytes that QUIC will read.
    pub(crate) fn deliver(
        &self,
        link: &Arc<Link>,
        batch: &mut Vec<Bytes>,
        mut on_probe: impl FnMut(&[u8]),
    ) -> usize {
        let mut bytes = 0;
        let mut queue = self.received();
        for datagram in batch.drain(..) {
            match form(&datagram) {
                Form::ShortHeader | Form::LongHeader => {
                    bytes += datagram.len();
                    let link = Arc::clone(link);
                    queue.datagrams.push_back(Received { link, datagram });
                }
                Form::Probe => on_probe(&datagram),
                Form::Garbage => {}
            }
        }
        let waker = match bytes {
            0 => None,
            _ => queue.waker.take(),
        };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }

        bytes
    }

    fn received(&self) -> std::sync::MutexGuard<'_, ReceiveQueue> {
        sync::lock(&self.received)
    }

    /// Fills `bufs` from the byte streams.
    fn receive_links(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut queue = self.received();
        let mut filled = 0;
        while filled < bufs.len() {
            let Some(first) = queue.datagrams.pop_front() else {
                break;
            };
            let (buf, stride) = (&mut bufs[filled], first.datagram.len());
            first.link.consumed(stride);
            if stride > buf.len() {
                continue;
            }
            buf[..stride].copy_from_slice(&first.datagram);
            let mut len = stride;
            // Datagrams of one size share a buffer; a shorter one may come last.
            while let Some(next) = queue.datagrams.front()
                && Arc::ptr_eq(&next.link, &first.link)
                && next.datagram.len() <= stride
                && len % stride == 0
                && len + next.datagram.len() <= buf.len()
            {
                buf[len..len + next.datagram.len()].copy_from_slice(&next.datagram);
                len += next.datagram.len();
                first.link.consumed(next.datagram.len());
                queue.datagrams.pop_front();
            }
            meta[filled] = RecvMeta {
                addr: self.side.admit_link(&first.link),
                len,
                stride,
                ecn: None,
                dst_ip: None,
            };
            filled += 1;
        }

        filled
    }

    /// Fills `bufs` with the datagrams from the UDP socket that QUIC may see.
    fn poll_udp(
        &self,
        udp: &Udp,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..GARBAGE_ROUNDS {
            let received = std::task::ready!(udp.poll_recv(cx, bufs, meta))?;
            let mut any = false;
            for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(received) {
                self.sift(udp, buf, meta);
                any |= meta.len > 0;
            }
            if any {
                return Poll::Ready(Ok(received));
            }
        }
        // The port is flooded: all other tasks have a turn first.
        cx.waker().wake_by_ref();

        Poll::Pending
    }

    /// Removes datagrams that are not for QUIC from one buffer, and answers the probes in it.
    fn sift(&self, udp: &Udp, buf: &mut [u8], meta: &mut RecvMeta) {
        let (len, stride, from) = (meta.len, meta.stride.max(1), udp::canonical(meta.addr));
        let mut admitted = None;
        let mut kept = 0;
        for start in (0..len).step_by(stride) {
            let end = (start + stride).min(len);
            match form(&buf[start..end]) {
                Form::Probe => {
                    if let Some(answer) = self.side.udp_probe(&buf[start..end], from) {
                        udp.send_probes(&answer.probes, answer.size, from);
                    }
                }
                Form::ShortHeader => {
                    let admitted = *admitted.get_or_insert_with(|| self.side.admit_udp(from));
                    if admitted.is_some() {
                        if kept != start {
                            buf.copy_within(start..end, kept);
                        }
                        kept += end - start;
                    }
                }
                Form::LongHeader | Form::Garbage => {}
            }
        }
        meta.len = kept;
        if let Some(Some(address)) = admitted {
            meta.addr = address;
            meta.dst_ip = None;
        }
    }
}

impl<S> fmt::Debug for Mux<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").finish_non_exhaustive()
    }
}

/// The path that blocked a transmit.
#[derive(Debug, Clone)]
enum Blocked {
    Link {
        link: Arc<Link>,
        destination: SocketAddr,
    },
    Udp,
}

thread_local! {
    /// Set while a connection's poller has reported writable. Packets that the endpoint sends on its
    /// own (e.g. Retry) are not preceded by a poll, and must not block a connection.
    static ANNOUNCED: Cell<bool> = const { Cell::new(false) };
    /// The path that blocked an announced `try_send`. QUIC polls the same poller right after, on the
    /// same thread, without a destination.
    static BLOCKED: RefCell<Option<Blocked>> = const { RefCell::new(None) };
}

impl<S: Side> AsyncUdpSocket for Mux<S> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            mux: self,
            blocked: None,
            writable: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (result, blocked) = match (self.side.route(transmit.destination), &self.udp) {
            (Route::Link(link), _) => {
                drivers::sends_by_stream(true);
                let destination = transmit.destination;
                (link.try_send(transmit), Blocked::Link { link, destination })
            }
            (Route::Udp { remote, batched }, Some(udp)) => {
                drivers::sends_by_stream(false);
                (udp.try_send(transmit, remote, batched), Blocked::Udp)
            }
            (Route::Udp { .. }, None) | (Route::Nowhere, _) => {
                ANNOUNCED.set(false);
                return Ok(());
            }
        };
        let would_block =
            matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let announced = ANNOUNCED.replace(false);
        BLOCKED.set(Some(blocked).filter(|_| would_block && announced));
        if !would_block {
            self.side.sent(transmit.contents.len());
        }

        result
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let udp_first = {
            let mut queue = self.received();
            queue.waker = Some(cx.waker().clone());
            queue.udp_first = !queue.udp_first;
            queue.udp_first
        };
        if !udp_first {
            let filled = self.receive_links(bufs, meta);
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
        }
        if let Some(udp) = &self.udp
            && let Poll::Ready(result) = self.poll_udp(udp, cx, bufs, meta)
        {
            return Poll::Ready(result);
        }
        if udp_first {
            let filled = self.receive_links(bufs, meta);
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
        }

        Poll::Pending
    }

    /// An IPv6 address like the logical addresses; no packet is ever sent to it.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        let port = self.udp.as_ref().map_or(1, Udp::port);

        Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    fn max_transmit_segments(&self) -> usize {
        let most = self
            .udp
            .as_ref()
            .map_or(LINK_SEGMENTS, Udp::max_transmit_segments);

        drivers::segments(most)
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.udp.as_ref().is_some_and(Udp::may_fragment)
    }
}

/// Waits, for one connection, until the path that blocked it has room.
struct Poller<S> {
    mux: Arc<Mux<S>>,
    blocked: Option<Blocked>,
    writable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl<S> fmt::Debug for Poller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

impl<S: Side> UdpPoller for Poller<S> {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(blocked) = BLOCKED.take() {
            self.blocked = Some(blocked);
            self.writable = None;
        }
        let result = match &self.blocked {
            None => Ok(()),
            Some(Blocked::Link { link, destination }) => {
                let rerouted = match self.mux.side.route(*destination) {
                    Route::Link(current) => !Arc::ptr_eq(&current, link),
                    Route::Udp { .. } | Route::Nowhere => true,
                };
                if !rerouted && !link.poll_room(cx.waker()) {
                    return Poll::Pending;
                }
                Ok(())
            }
            Some(Blocked::Udp) => {
                let mux = Arc::clone(&self.mux);
                let writable = self.writable.get_or_insert_with(|| {
                    Box::pin(async move {
                        match &mux.udp {
                            Some(udp) => udp.writable().await,
                            None => Ok(()),
                        }
                    })
                });
                std::task::ready!(writable.as_mut().poll(cx))
            }
        };
        self.blocked = None;
        self.writable = None;
        ANNOUNCED.set(result.is_ok());

        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests;

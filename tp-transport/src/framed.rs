//! The stream path: QUIC datagrams over a byte stream, each prefixed with its length as a big-endian
//! u16.
//!
//! Full buffers never drop datagrams. A full send buffer is `WouldBlock` to QUIC, and a full receive
//! queue stops the reading of the stream.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Instant,
};

use bytes::{Buf, Bytes, BytesMut};
use quinn::udp::Transmit;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;
use tp_process::sync;

/// Bytes that may wait to be written: enough to keep the stream busy, few enough that a small
/// request does not wait long behind them. One batch of QUIC may exceed it.
const SEND_LIMIT: usize = 128 << 10;
/// Bytes that may wait for QUIC to read them.
const RECEIVE_LIMIT: usize = 512 << 10;
/// The same while the stream is not proven to be its session's: a handshake is smaller, and anybody
/// who knows a session's name can open several such streams.
const UNPROVEN_LIMIT: usize = 32 << 10;
/// Buffer size of one read: small where little comes, and doubled whenever it was filled.
const FIRST_CHUNK: usize = 2 << 10;
const UNPROVEN_CHUNK: usize = 16 << 10;
const READ_CHUNK: usize = 128 << 10;
const PREFIX: usize = 2;

/// Unsent bytes that the kernel may hold: a small request waits behind them.
const UNSENT_LIMIT: u32 = 32 << 10;

/// Sets a TCP connection up as a byte stream: no delay of small segments, and a short queue in the
/// kernel, where a small request would wait behind it.
///
/// # Errors
///
/// If the kernel refuses TCP_NODELAY or TCP_NOTSENT_LOWAT.
pub fn tune_link(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;

    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_LIMIT)
}

/// Milliseconds since the first call: for ages, in atomics.
pub(crate) fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();

    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One byte stream, as the socket of the QUIC endpoint sees it.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    /// True once the other end has proven that it has the session's key.
    proven: AtomicBool,
    outgoing: Mutex<Outgoing>,
    /// There is something to write.
    filled: Notify,
    /// Bytes received that QUIC has not read.
    unread: AtomicUsize,
    /// QUIC has read some.
    drained: Notify,
    ended: CancellationToken,
    last_received_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    waiting: Vec<Waker>,
}

impl Outgoing {
    fn shrink(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

/// A datagram that came over a byte stream.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) link: Arc<Link>,
    pub(crate) datagram: Bytes,
}

impl Link {
    /// A stream that this end has opened.
    pub(crate) fn new(address: SocketAddr) -> Arc<Self> {
        Self::with(address, true)
    }

    /// A stream whose other end has not proven yet that it has the session's key.
    pub(crate) fn unproven(address: SocketAddr) -> Arc<Self> {
        Self::with(address, false)
    }

    fn with(address: SocketAddr, proven: bool) -> Arc<Self> {
        Arc::new(Self {
            address,
            proven: AtomicBool::new(proven),
            outgoing: Mutex::default(),
            filled: Notify::new(),
            unread: AtomicUsize::new(0),
            drained: Notify::new(),
            ended: CancellationToken::new(),
            last_received_ms: AtomicU64::new(now_ms()),
        })
    }

    /// The address that stands for this stream.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// When a byte was last received, in [`now_ms`].
    pub(crate) fn last_received_ms(&self) -> u64 {
        self.last_received_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Gives it the limits of a proven stream.
    pub(crate) fn prove(&self) {
        self.proven.store(true, Ordering::Release);
        // Its reader and its writers may wait at the lower limits.
        self.drained.notify_one();
        self.wake();
    }

    /// `most`, or `unproven` before the stream is proven.
    fn room(&self, most: usize, unproven: usize) -> usize {
        match self.proven.load(Ordering::Acquire) {
            true => most,
            false => unproven,
        }
    }

    fn send_limit(&self) -> usize {
        self.room(SEND_LIMIT, UNPROVEN_LIMIT)
    }

    fn receive_limit(&self) -> usize {
        self.room(RECEIVE_LIMIT, UNPROVEN_LIMIT)
    }

    /// Queues all datagrams of a transmit, or none.
    pub(crate) fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.ended.is_cancelled() {
            // As if the datagram were lost in the network; the path monitor reacts.
            return Ok(());
        }
        let mut outgoing = self.outgoing();
        if outgoing.bytes.len() >= self.send_limit() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        for datagram in transmit.contents.chunks(size.max(1)) {
            push_frame(&mut outgoing.bytes, datagram);
        }
        drop(outgoing);
        self.filled.notify_one();

        Ok(())
    }

    /// Queues a probe, even past the limit: probes are small and rare.
    pub(crate) fn send_probe(&self, probe: &[u8]) {
        let mut outgoing = self.outgoing();
        if outgoing.bytes.len() < 2 * self.send_limit() {
            push_frame(&mut outgoing.bytes, probe);
        }
        drop(outgoing);
        self.filled.notify_one();
    }

    /// Returns whether [`Link::try_send`] would succeed; otherwise `waker` is woken when it may.
    pub(crate) fn poll_room(&self, waker: &Waker) -> bool {
        let mut outgoing = self.outgoing();
        if outgoing.bytes.len() < self.send_limit() || self.ended.is_cancelled() {
            return true;
        }
        if !outgoing.waiting.iter().any(|other| other.will_wake(waker)) {
            outgoing.waiting.push(waker.clone());
        }

        false
    }

    /// Wakes everybody who waits for room, because the path changed or the link ended.
    pub(crate) fn wake(&self) {
        let waiting = std::mem::take(&mut self.outgoing().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// QUIC has read so many bytes.
    pub(crate) fn consumed(&self, bytes: usize) {
        let before = self.unread.fetch_sub(bytes, Ordering::AcqRel);
        let limit = self.receive_limit();
        if before >= limit && before - bytes < limit {
            self.drained.notify_one();
        }
    }

    /// Ends both directions.
    pub(crate) fn end(&self) {
        self.ended.cancel();
        self.wake();
    }

    /// Writes what is queued until the link ends.
    pub(crate) async fn run_writer(&self, stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let result = tokio::select! {
            result = self.write(stream) => result,
            () = self.ended.cancelled() => Ok(()),
        };
        self.end();

        result
    }

    async fn write(&self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            std::mem::swap(&mut self.outgoing().bytes, &mut batch);
            if batch.is_empty() {
                // A quiet stream frees the buffers of its last burst.
                batch = Vec::new();
                self.outgoing().shrink();
                stream.flush().await?;
                self.filled.notified().await;
                continue;
            }
            self.wake();
            stream.write_all(&batch).await?;
            batch.clear();
        }
    }

    /// Reads frames until the link ends, and hands them over in batches, as many as one read
    /// brought. `deliver` gets QUIC datagrams and probes alike and returns the bytes it queued.
    pub(crate) async fn run_reader(
        &self,
        stream: impl AsyncRead + Unpin,
        deliver: impl FnMut(&mut Vec<Bytes>) -> usize,
    ) -> io::Result<()> {
        let result = tokio::select! {
            result = self.read(stream, deliver) => result,
            () = self.ended.cancelled() => Ok(()),
        };
        self.end();

        result
    }

    async fn read(
        &self,
        mut stream: impl AsyncRead + Unpin,
        mut deliver: impl FnMut(&mut Vec<Bytes>) -> usize,
    ) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut batch = Vec::new();
        let mut chunk = FIRST_CHUNK;
        loop {
            while self.unread.load(Ordering::Acquire) >= self.receive_limit() {
                self.drained.notified().await;
            }
            if buffer.is_empty() && buffer.capacity() > 2 * chunk {
                buffer = BytesMut::new();
            }
            if buffer.capacity() - buffer.len() < chunk / 2 {
                buffer.reserve(chunk);
            }
            let room = buffer.capacity() - buffer.len();
            let read = stream.read_buf(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            if read == room {
                let largest = self.room(READ_CHUNK, UNPROVEN_CHUNK);
                chunk = (2 * chunk).min(largest);
            } else if read < chunk / 4 {
                chunk = (chunk / 2).max(FIRST_CHUNK);
            }
            self.last_received_ms.store(now_ms(), Ordering::Relaxed);
            while let Some(datagram) = split_frame(&mut buffer) {
                batch.push(datagram);
            }
            if !batch.is_empty() {
                // Before they can be consumed: the count must not underflow.
                let bytes: usize = batch.iter().map(Bytes::len).sum();
                self.unread.fetch_add(bytes, Ordering::AcqRel);
                let queued = deliver(&mut batch);
                self.unread.fetch_sub(bytes - queued, Ordering::AcqRel);
                batch.clear();
            }
        }
    }

    fn outgoing(&self) -> std::sync::MutexGuard<'_, Outgoing> {
        sync::lock(&self.outgoing)
    }
}

fn push_frame(bytes: &mut Vec<u8>, datagram: &[u8]) {
    let Ok(length) = u16::try_from(datagram.len()) else {
        // QUIC datagrams of ours are far smaller.
        return;
    };
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(datagram);
}

fn split_frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let prefix = buffer.get(..PREFIX)?.try_into().expect("two bytes");
    let length = usize::from(u16::from_be_bytes(prefix));
    if buffer.len() < PREFIX + length {
        return None;
    }
    buffer.advance(PREFIX);

    Some(buffer.split_to(length).freeze())
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, task::Waker, time::Duration};

    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds() {
        let link = Link::new(address());
        let (near, far) = tokio::io::duplex(64);
        let (read, write) = tokio::io::split(near);
        link.try_send(&transmit(&[1, 2, 3, 4, 5], Some(2))).unwrap();
        let peer = Link::new(address());
        let (peer_read, _peer_write) = tokio::io::split(far);
        let mut received = Vec::new();

        let writer = link.run_writer(write);
        let reader = peer.run_reader(peer_read, |batch| {
            received.append(batch);
            peer_stop(&peer, received.len());
            0
        });
        let _ = tokio::join!(reader, async {
            tokio::select! { result = writer => result, () = peer.ended().cancelled() => Ok(()) }
        });

        drop(read);
        assert_eq!(received, [&[1, 2][..], &[3, 4], &[5]]);
    }

    #[test]
    fn a_full_buffer_is_back_pressure_and_never_a_drop() {
        let link = Link::new(address());
        let datagram = vec![7; 60_000];
        let mut queued = 0;
        while link.try_send(&transmit(&datagram, None)).is_ok() {
            queued += 1;
        }

        assert_eq!(queued, SEND_LIMIT.div_ceil(60_002));
        assert!(!link.poll_room(Waker::noop()));
        assert_eq!(link.outgoing().bytes.len(), queued * 60_002);
    }

    #[test]
    fn a_stream_that_nobody_has_proven_has_little_room() {
        let link = Link::unproven(address());
        let datagram = vec![7; 1200];
        let fill = || {
            while link.try_send(&transmit(&datagram, None)).is_ok() {}
            link.outgoing().bytes.len()
        };

        let unproven = fill();
        assert!(!link.poll_room(Waker::noop()));
        link.prove();

        assert!(unproven < UNPROVEN_LIMIT + 2000, "{unproven}");
        assert!(link.poll_room(Waker::noop()));
        assert!(fill() >= SEND_LIMIT);
    }

    #[tokio::test]
    async fn a_reader_that_waits_for_room_goes_on_when_its_stream_is_proven() {
        let link = Link::unproven(address());
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut frame = Vec::new();
        push_frame(&mut frame, &[0x40; 1200]);
        let queued = AtomicUsize::new(0);

        let reader = link.run_reader(near, |batch| {
            let bytes = batch.iter().map(Bytes::len).sum();
            queued.fetch_add(bytes, Ordering::Relaxed);
            bytes
        });
        let flood = async {
            loop {
                far.write_all(&frame).await.unwrap();
            }
        };
        let limit = Duration::from_secs(20);
        let proven = async {
            let is_full = async |least: usize| {
                while queued.load(Ordering::Relaxed) < least {
                    tokio::task::yield_now().await;
                }
            };
            is_full(UNPROVEN_LIMIT).await;
            // Every task has had its turns, and none goes on.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let unproven = queued.load(Ordering::Relaxed);
            assert!(
                unproven <= UNPROVEN_LIMIT + 2 * UNPROVEN_CHUNK,
                "{unproven}"
            );
            link.prove();
            is_full(RECEIVE_LIMIT).await;
        };

        tokio::select! {
            result = reader => panic!("the reader ended: {result:?}"),
            never = flood => never,
            proven = tokio::time::timeout(limit, proven) => proven.unwrap(),
        }
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_stream_and_not_the_memory() {
        let link = Link::new(address());
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let frame = {
            let mut bytes = Vec::new();
            push_frame(&mut bytes, &[0x40; 1200]);
            bytes
        };
        let mut queued = 0;
        let mut written = 0;

        let reader = link.run_reader(near, |batch| {
            let bytes = batch.iter().map(Bytes::len).sum();
            queued += bytes;
            bytes
        });
        let flood = async {
            for _ in 0..10_000 {
                far.write_all(&frame).await.unwrap();
                written += frame.len();
            }
        };
        let limit = Duration::from_millis(300);
        tokio::select! {
            result = reader => panic!("the reader ended: {result:?}"),
            result = tokio::time::timeout(limit, flood) => assert!(result.is_err()),
        }

        assert!(queued <= RECEIVE_LIMIT + 2 * READ_CHUNK, "{queued}");
        assert!(written < 2 * RECEIVE_LIMIT, "{written}");
    }

    fn peer_stop(peer: &Link, received: usize) {
        if received == 3 {
            peer.end();
        }
    }

    fn address() -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1)
    }

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit {
            destination: address(),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        }
    }
}

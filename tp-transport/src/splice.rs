//! Ties a TCP connection to a flow: both directions, every way to end.

mod idle;
pub(crate) mod joined;

pub use idle::keep_alive;
pub use joined::join_tcp;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, task::coop::consume_budget, time::sleep};
use tp_core::keep_alive::Segments;

use crate::{
    codes::ResetCode,
    flow::{Flow, FlowError, RecvHalf, SendHalf},
};
use idle::Idle;

/// Most bytes read from TCP at once.
const READ_SIZE: usize = 256 << 10;
/// Buffer of a flow that is quiet so far.
const FIRST_READ_SIZE: usize = 8 << 10;
/// A buffer with less capacity left is replaced by a new one.
const MIN_CAPACITY: usize = 4 << 10;
/// Datagrams' worth of data written to TCP at once.
const WRITE_CHUNKS: usize = 64;
/// Between polls for the end of a TCP connection.
const MIN_POLL_BACKOFF: Duration = Duration::from_millis(1);
const MAX_POLL_BACKOFF: Duration = Duration::from_millis(250);

/// Bytes transferred, shared by any number of splices.
#[derive(Debug, Default)]
pub struct SpliceCounters {
    /// From TCP into the tunnel.
    pub sent: AtomicU64,
    /// From the tunnel into TCP.
    pub received: AtomicU64,
}

/// The end of a splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both ends half-closed and everything is acknowledged.
    Finished,
    /// The TCP connection was reset or failed.
    TcpReset,
    /// The other end of the tunnel reset the flow; the TCP connection was reset too.
    FlowReset(ResetCode),
    /// The tunnel is gone; the TCP connection was reset.
    TunnelLost,
}

/// Copies both directions until both have ended. A half-close becomes a FIN and the reverse, a
/// reset becomes a reset, and a lost tunnel, or dropping this future, resets the TCP connection:
/// a truncated transfer never ends cleanly.
pub async fn splice(tcp: TcpStream, flow: Flow, counters: &SpliceCounters) -> SpliceEnd {
    splice_observed(tcp, flow, counters, |_| None).await
}

/// As [`splice`], for the application's end: tells the other end how often the application's kernel
/// probes the connection, so that it probes as often.
pub async fn splice_observed(
    tcp: TcpStream,
    flow: Flow,
    counters: &SpliceCounters,
    observe: fn(&TcpStream) -> Option<Segments>,
) -> SpliceEnd {
    // A socket closed before both FINs are acknowledged is reset, and does not become an orphan.
    let prepared = SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        // An urgent byte stays in order with the others, though its mark is lost.
        .and_then(|()| SockRef::from(&tcp).set_out_of_band_inline(true))
        .and_then(|()| tcp.set_nodelay(true));
    let (mut send, mut recv) = flow.split();
    let idle = Idle::default();
    let credit = send.shared_credit();
    let spliced = match prepared {
        Err(error) => Err(error.into()),
        Ok(()) => {
            let both = async {
                tokio::try_join!(
                    upward(&tcp, &mut send, counters, &idle),
                    downward(&tcp, &mut recv, counters),
                )
            };
            tokio::select! {
                spliced = both => spliced,
                never = idle.watch(&tcp, credit, observe) => match never {},
            }
        }
    };
    match spliced {
        Ok(((), ())) => {
            // The flow does not wait for the end of TCP.
            drop((send, recv));
            closed(&tcp).await;
            SpliceEnd::Finished
        }
        Err(end) => {
            // With linger 0, dropping the socket resets it.
            send.reset(ResetCode::Reset);
            recv.stop(ResetCode::Reset);
            match end {
                End::Tcp => SpliceEnd::TcpReset,
                End::Flow(FlowError::Reset(code)) => SpliceEnd::FlowReset(code),
                End::Flow(_) => SpliceEnd::TunnelLost,
            }
        }
    }
}

/// The reason for the early end of a direction.
enum End {
    Tcp,
    Flow(FlowError),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        tracing::trace!(%error, "TCP connection failed");

        Self::Tcp
    }
}

impl From<FlowError> for End {
    fn from(error: FlowError) -> Self {
        Self::Flow(error)
    }
}

/// TCP into the tunnel. Resolves when the other end has acknowledged everything.
async fn upward(
    tcp: &TcpStream,
    send: &mut SendHalf,
    counters: &SpliceCounters,
    idle: &Idle,
) -> Result<(), End> {
    let credit = send.shared_credit();
    let mut size = FIRST_READ_SIZE;
    let mut buffer = BytesMut::new();
    // Resolves when the other end no longer reads, or the tunnel is lost, while TCP is quiet.
    let mut stopped = Box::pin(send.stopped());
    loop {
        // What is tried takes none, and neither does QUIC.
        consume_budget().await;
        if send.credit_left() == 0 {
            // A flow that waits for its reader holds no buffer: split-off parts share the allocation.
            buffer = BytesMut::new();
            size = FIRST_READ_SIZE;
            tokio::select! {
                credit = send.credit() => credit?,
                error = failed(tcp) => return Err(error.into()),
            };
        }
        let waiting = match &credit {
            Some(credit) => credit.reserve_waiting(size).await,
            None => None,
        };
        // Less than before if the flow was idle in between and has given credit back.
        let most = usize::try_from(send.credit_left()).unwrap_or(usize::MAX);
        if most == 0 {
            continue;
        }
        if buffer.capacity() < MIN_CAPACITY {
            buffer = BytesMut::with_capacity(size.min(most).max(MIN_CAPACITY));
        }
        match tcp.try_read_buf(&mut (&mut buffer).limit(most.min(size))) {
            Ok(0) => break,
            Ok(read) => {
                counters.sent.fetch_add(read as u64, Ordering::Relaxed);
                idle.has_read();
                if read >= size / 2 {
                    size = (size * 4).min(READ_SIZE);
                }
                send.write_chunk(buffer.split().freeze()).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                drop(waiting);
                // A quiet flow holds no buffer.
                buffer = BytesMut::new();
                tokio::select! {
                    ready = tcp.readable() => ready?,
                    ended = &mut stopped => ended?,
                }
                size = (size / 2).max(FIRST_READ_SIZE);
            }
            Err(error) => return Err(error.into()),
        }
    }
    send.finish();
    tokio::select! {
        ended = stopped => Ok(ended?),
        error = failed(tcp) => Err(error.into()),
    }
}

/// The tunnel into TCP.
async fn downward(
    tcp: &TcpStream,
    recv: &mut RecvHalf,
    counters: &SpliceCounters,
) -> Result<(), End> {
    let mut chunks: [Bytes; WRITE_CHUNKS] = std::array::from_fn(|_| Bytes::new());
    loop {
        consume_budget().await;
        let read = tokio::select! {
            read = recv.read_chunks(&mut chunks) => read?,
            error = failed(tcp) => return Err(error.into()),
        };
        let Some(count) = read else {
            break;
        };
        let bytes: usize = chunks[..count].iter().map(Bytes::len).sum();
        write_all(tcp, &mut chunks[..count]).await?;
        counters.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    match SockRef::from(tcp).shutdown(std::net::Shutdown::Write) {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all chunks and leaves them empty.
async fn write_all(tcp: &TcpStream, mut chunks: &mut [Bytes]) -> io::Result<()> {
    while !chunks.is_empty() {
        let mut slices = [io::IoSlice::new(&[]); WRITE_CHUNKS];
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = io::IoSlice::new(chunk);
        }
        match tcp.try_write_vectored(&slices[..chunks.len()]) {
            Ok(written) => chunks = skip(chunks, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }

    Ok(())
}

/// Removes the written bytes from the chunks.
pub(crate) fn skip(chunks: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    let mut whole = 0;
    for chunk in chunks.iter_mut() {
        if written < chunk.len() {
            let _ = chunk.split_to(written);
            break;
        }
        written -= chunk.len();
        *chunk = Bytes::new();
        whole += 1;
    }

    &mut chunks[whole..]
}

/// Resolves when the TCP connection has failed, which neither a read after its end nor a wait
/// for data would show.
pub async fn failed(tcp: &TcpStream) -> io::Error {
    loop {
        match tcp.ready(Interest::ERROR).await {
            Ok(_) => match tcp.take_error() {
                Ok(Some(error)) | Err(error) => return error,
                Ok(None) if is_closed(tcp) => return io::ErrorKind::ConnectionReset.into(),
                // Readiness of another kind: checked again after a pause.
                Ok(None) => sleep(MAX_POLL_BACKOFF).await,
            },
            Err(error) => return error,
        }
    }
}

/// Resolves when both FINs are acknowledged. The kernel's own limits apply: a reader that is merely
/// slow is waited for, and one that has vanished times out.
pub async fn closed(tcp: &TcpStream) {
    let mut pause = MIN_POLL_BACKOFF;
    while !is_closed(tcp) {
        sleep(pause).await;
        pause = (pause * 2).min(MAX_POLL_BACKOFF);
    }
}

/// True in the state CLOSE, which the socket also has once TIME-WAIT has taken over: only there a
/// socket that had a peer has none.
fn is_closed(tcp: &TcpStream) -> bool {
    tcp.peer_addr().is_err()
}

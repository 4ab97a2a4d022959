//! Ties an intercepted connection to its carrier, and the carrier to the stream of a session: both
//! directions, every way to end.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    sync::atomic::Ordering,
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
};

use super::link::AgentFlow;
use crate::{
    codes::ResetCode,
    flow::{Flow, FlowError, RecvHalf, SendHalf},
    splice::{SpliceCounters, SpliceEnd, closed, failed, joined::write_all, skip},
};

/// Bytes read at once: of a connection that is quiet so far, and at most. TLS has 16 KiB a record.
const FIRST_READ_SIZE: usize = 8 << 10;
const READ_SIZE: usize = 64 << 10;
/// Chunks of a session's stream written at once: some 64 KiB of full datagrams.
const CHUNKS: usize = 48;

/// Copies both directions between a client and the carrier of its connection, until both have ended. A
/// reset becomes a reset, in either direction, as does dropping this future.
///
/// # Errors
///
/// Those of whichever connection fails first.
pub async fn carry(
    client: TcpStream,
    carrier: AgentFlow,
    counters: &SpliceCounters,
) -> io::Result<()> {
    // A socket closed before both FINs are acknowledged is reset.
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    SockRef::from(&client).set_out_of_band_inline(true)?;
    client.set_nodelay(true)?;
    let (tcp, mut reader, mut writer) = carrier.split();
    let both = async {
        tokio::try_join!(
            client_to_carrier(&client, &mut writer, counters),
            carrier_to_client(&mut reader, &client, counters),
        )
    };
    tokio::select! {
        copied = both => drop(copied?),
        error = failed(&client) => return Err(error),
        error = failed(&tcp) => return Err(error),
    }
    closed(&client).await;
    closed(&tcp).await;

    Ok(())
}

/// As [`carry`], between a carrier and the stream of the session that the connection is for.
pub async fn carry_on(carrier: AgentFlow, flow: Flow, counters: &SpliceCounters) -> SpliceEnd {
    let (tcp, mut reader, mut writer) = carrier.split();
    let (mut send, mut recv) = flow.split();
    let both = async {
        tokio::try_join!(
            carrier_to_flow(&mut reader, &mut send, counters),
            flow_to_carrier(&mut recv, &mut writer, counters),
        )
    };
    let ended = tokio::select! {
        copied = both => copied.map(drop),
        error = failed(&tcp) => Err(error.into()),
    };
    match ended {
        Ok(()) => {
            drop((send, recv));
            closed(&tcp).await;
            SpliceEnd::Finished
        }
        Err(end) => {
            send.reset(ResetCode::Reset);
            recv.stop(ResetCode::Reset);
            match end {
                End::Carrier => SpliceEnd::TcpReset,
                End::Flow(FlowError::Reset(code)) => SpliceEnd::FlowReset(code),
                End::Flow(_) => SpliceEnd::TunnelLost,
            }
        }
    }
}

enum End {
    Carrier,
    Flow(FlowError),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        tracing::trace!(%error, "Carrier failed");

        Self::Carrier
    }
}

impl From<FlowError> for End {
    fn from(error: FlowError) -> Self {
        Self::Flow(error)
    }
}

/// How much to read at once, by what the last reads gave.
struct ReadSize(usize);

impl ReadSize {
    fn next(&mut self, read: usize) {
        if read >= self.0 / 2 {
            self.0 = (self.0 * 2).min(READ_SIZE);
        }
    }
}

async fn client_to_carrier(
    client: &TcpStream,
    writer: &mut WriteHalf<AgentFlow>,
    counters: &SpliceCounters,
) -> io::Result<()> {
    let mut size = ReadSize(FIRST_READ_SIZE);
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        buffer.reserve(size.0);
        match client.try_read_buf(&mut (&mut buffer).limit(size.0)) {
            Ok(0) => break,
            Ok(read) => {
                counters.sent.fetch_add(read as u64, Ordering::Relaxed);
                size.next(read);
                writer.write_all(&buffer).await?;
                // Of a record that waits, the client's answer may wait.
                writer.flush().await?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A quiet connection holds no buffer.
                (buffer, size) = (BytesMut::new(), ReadSize(FIRST_READ_SIZE));
                client.readable().await?;
            }
            Err(error) => return Err(error),
        }
    }

    writer.shutdown().await
}

async fn carrier_to_client(
    reader: &mut ReadHalf<AgentFlow>,
    client: &TcpStream,
    counters: &SpliceCounters,
) -> io::Result<()> {
    let mut size = ReadSize(FIRST_READ_SIZE);
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        buffer.reserve(size.0);
        let read = reader.read_buf(&mut (&mut buffer).limit(size.0)).await?;
        if read == 0 {
            break;
        }
        size.next(read);
        write_all(client, &buffer).await?;
        counters.received.fetch_add(read as u64, Ordering::Relaxed);
    }

    SockRef::from(client).shutdown(Shutdown::Write)
}

/// Resolves when the session has acknowledged everything.
async fn carrier_to_flow(
    reader: &mut ReadHalf<AgentFlow>,
    send: &mut SendHalf,
    counters: &SpliceCounters,
) -> Result<(), End> {
    let mut size = ReadSize(FIRST_READ_SIZE);
    let mut stopped = Box::pin(send.stopped());
    loop {
        if send.credit_left() == 0 {
            send.credit().await?;
        }
        let most = usize::try_from(send.credit_left()).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::with_capacity(size.0.min(most));
        let mut limited = (&mut buffer).limit(size.0.min(most));
        let read = tokio::select! {
            read = reader.read_buf(&mut limited) => read?,
            ended = &mut stopped => return Ok(ended?),
        };
        if read == 0 {
            break;
        }
        size.next(read);
        counters.received.fetch_add(read as u64, Ordering::Relaxed);
        send.write_chunk(buffer.freeze()).await?;
    }
    send.finish();

    Ok(stopped.await?)
}

async fn flow_to_carrier(
    recv: &mut RecvHalf,
    writer: &mut WriteHalf<AgentFlow>,
    counters: &SpliceCounters,
) -> Result<(), End> {
    // A chunk is what one datagram brought: a record of its own for each would cost several times as much.
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    while let Some(count) = recv.read_chunks(&mut chunks).await? {
        let bytes: usize = chunks[..count].iter().map(Bytes::len).sum();
        let mut left = &mut chunks[..count];
        while !left.is_empty() {
            let mut slices = [IoSlice::new(&[]); CHUNKS];
            for (slice, chunk) in slices.iter_mut().zip(left.iter()) {
                *slice = IoSlice::new(chunk);
            }
            let written = writer.write_vectored(&slices[..left.len()]).await?;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            left = skip(left, written);
        }
        writer.flush().await?;
        counters.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    Ok(writer.shutdown().await?)
}

//! What one stream of the connection carries: an `Open`, the far side's `Verdict`, raw bytes.
//!
//! A FIN is a half-close. A half that is dropped before its end resets its direction, so that a
//! truncated flow can never look like a complete one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use prost::Message;
use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, server::Connected};
use tp_proto::tunnel::{Control, Dial, Open, Outcome, Verdict, open};

use crate::codes::ResetCode;

/// Longest `Open` and `Verdict`.
const MAX_MESSAGE: usize = 2048;
/// Longest reason in a `Verdict`.
const MAX_REASON: usize = 1024;
/// Control streams are sent before flows, so that bulk cannot starve them.
const CONTROL_PRIORITY: i32 = 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The other end reset its direction, or stopped reading ours.
    #[error("the flow was reset by the other end")]
    Reset(ResetCode),
    #[error("the tunnel is gone")]
    TunnelLost,
    #[error("the flow was ended here already")]
    Closed,
    #[error("the other end broke the flow protocol: {0}")]
    Malformed(&'static str),
}

impl From<ReadError> for FlowError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into()),
            ReadError::ConnectionLost(_) => Self::TunnelLost,
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<WriteError> for FlowError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code.into()),
            WriteError::ConnectionLost(_) => Self::TunnelLost,
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ConnectionError> for FlowError {
    fn from(_: ConnectionError) -> Self {
        Self::TunnelLost
    }
}

impl From<FlowError> for io::Error {
    fn from(error: FlowError) -> Self {
        let kind = match error {
            FlowError::Reset(_) => io::ErrorKind::ConnectionReset,
            FlowError::TunnelLost => io::ErrorKind::ConnectionAborted,
            FlowError::Closed => io::ErrorKind::NotConnected,
            FlowError::Malformed(_) => io::ErrorKind::InvalidData,
        };

        Self::new(kind, error)
    }
}

/// The raw bytes of one flow, both directions, after the verdict.
#[derive(Debug)]
pub struct Flow {
    send: SendHalf,
    recv: RecvHalf,
}

impl Flow {
    pub(crate) fn new(send: SendStream, recv: RecvStream) -> Self {
        Self {
            send: SendHalf {
                stream: send,
                ended: false,
            },
            recv: RecvHalf {
                stream: recv,
                ended: false,
            },
        }
    }

    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// Resets both directions.
    pub fn reset(mut self, code: ResetCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

/// The sending direction. Dropped before [`SendHalf::finish`], it resets.
#[derive(Debug)]
pub struct SendHalf {
    stream: SendStream,
    ended: bool,
}

impl SendHalf {
    /// Waits for room, then hands all of `data` over; the tunnel keeps it until acknowledged.
    pub async fn write_all(&mut self, data: &[u8]) -> Result<(), FlowError> {
        Ok(self.stream.write_all(data).await?)
    }

    /// As [`SendHalf::write_all`], without a copy.
    pub async fn write_chunk(&mut self, data: Bytes) -> Result<(), FlowError> {
        Ok(self.stream.write_chunk(data).await?)
    }

    /// Half-close: the other end reads all that was written, then the end of the flow.
    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only if the stream has ended already.
            let _ = self.stream.finish();
        }
    }

    /// Ends this direction with an error; what the other end has not read is lost.
    pub fn reset(&mut self, code: ResetCode) {
        self.ended = true;
        // Fails only if the stream has ended already.
        let _ = self.stream.reset(code.into());
    }

    /// Resolves when the other end has acknowledged everything after [`SendHalf::finish`], or
    /// with an error when it no longer reads or the tunnel is lost.
    pub fn stopped(&self) -> impl Future<Output = Result<(), FlowError>> + Send + Sync + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(FlowError::Reset(code.into())),
                Err(error) => Err(WriteError::from(error).into()),
            }
        }
    }

    async fn write_message(&mut self, message: &impl Message) -> Result<(), FlowError> {
        let length = message.encoded_len();
        let prefix = u16::try_from(length)
            .ok()
            .filter(|_| length <= MAX_MESSAGE)
            .ok_or(FlowError::Malformed("a message is too long to be sent"))?;
        let mut frame = Vec::with_capacity(2 + length);
        frame.extend_from_slice(&prefix.to_be_bytes());
        frame.extend_from_slice(&message.encode_to_vec());

        self.write_chunk(frame.into()).await
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(ResetCode::Aborted);
        }
    }
}

/// The receiving direction. Dropped before its end, it tells the other end to stop.
#[derive(Debug)]
pub struct RecvHalf {
    stream: RecvStream,
    ended: bool,
}

impl RecvHalf {
    /// The next bytes, at most `max` of them; `None` once the other end has half-closed.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, FlowError> {
        let read = self.stream.read_chunk(max, true).await;
        self.ended |= !matches!(read, Ok(Some(_)));

        Ok(read?.map(|chunk| chunk.bytes))
    }

    /// Fills up to `chunks.len()` chunks without waiting for more than the first.
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, FlowError> {
        let read = self.stream.read_chunks(chunks).await;
        self.ended |= !matches!(read, Ok(Some(_)));

        Ok(read?)
    }

    /// Tells the other end that nothing more will be read.
    pub fn stop(&mut self, code: ResetCode) {
        self.ended = true;
        // Fails only if the stream has ended already.
        let _ = self.stream.stop(code.into());
    }

    async fn read_message<M: Message + Default>(&mut self) -> Result<M, FlowError> {
        let mut prefix = [0; 2];
        self.read_exact(&mut prefix).await?;
        let length = usize::from(u16::from_be_bytes(prefix));
        if length > MAX_MESSAGE {
            return Err(FlowError::Malformed("a message is too long"));
        }
        let mut frame = vec![0; length];
        self.read_exact(&mut frame).await?;

        M::decode(frame.as_slice()).map_err(|_| FlowError::Malformed("a message cannot be decoded"))
    }

    async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), FlowError> {
        self.stream
            .read_exact(buffer)
            .await
            .map_err(|error| match error {
                ReadExactError::FinishedEarly(_) => {
                    FlowError::Malformed("the stream ends within a message")
                }
                ReadExactError::ReadError(error) => error.into(),
            })
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(ResetCode::Aborted);
        }
    }
}

/// One stream as a byte pipe for gRPC.
#[derive(Debug)]
pub struct FlowIo {
    flow: Flow,
}

impl FlowIo {
    pub(crate) fn new(flow: Flow) -> Self {
        Self { flow }
    }

    /// The client's end of a control stream as a gRPC channel, which ends with the stream.
    pub async fn into_channel(self) -> Result<Channel, tonic::transport::Error> {
        let mut io = Some(hyper_util::rt::TokioIo::new(self));
        let connector = tower::service_fn(move |_| {
            let io = io.take();
            async move { io.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });

        Endpoint::from_static("http://manager")
            .connect_with_connector(connector)
            .await
    }
}

impl AsyncRead for FlowIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let recv = &mut self.flow.recv;
        let before = buf.filled().len();
        let read = ready!(recv.stream.poll_read_buf(cx, buf));
        let at_end = read.is_ok() && buf.filled().len() == before && buf.remaining() > 0;
        recv.ended |= at_end || read.is_err();

        Poll::Ready(read.map_err(|error| FlowError::from(error).into()))
    }
}

impl AsyncWrite for FlowIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.flow.send.stream)
            .poll_write(cx, buf)
            .map_err(|error| FlowError::from(error).into())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.send.finish();

        Poll::Ready(Ok(()))
    }
}

impl Connected for FlowIo {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// What the other end opened.
#[derive(Debug)]
pub enum Accepted {
    /// A gRPC control stream, already confirmed.
    Control(FlowIo),
    /// A TCP connection that this end is asked to dial.
    Dial {
        target: SocketAddr,
        pending: PendingFlow,
    },
}

/// A dial that waits for its verdict. Dropped without one, it is reset.
#[derive(Debug)]
pub struct PendingFlow {
    flow: Flow,
}

impl PendingFlow {
    /// The target is connected: the raw bytes follow.
    pub async fn accept(mut self) -> Result<Flow, FlowError> {
        self.flow
            .send
            .write_message(&verdict(Outcome::Connected, ""))
            .await?;

        Ok(self.flow)
    }

    /// The target is not connected; `reason` is a sentence for `tp status`.
    pub async fn refuse(mut self, outcome: Outcome, reason: &str) {
        if let Err(error) = self
            .flow
            .send
            .write_message(&verdict(outcome, reason))
            .await
        {
            tracing::debug!(%error, "Nobody waits for this verdict");
            return;
        }
        self.flow.send.finish();
        self.flow.recv.stop(ResetCode::Reset);
    }

    /// Resolves when the application that dialled has gone, or the tunnel has: give the dial up.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let stopped = self.flow.send.stopped();
        async move {
            // Whichever way it ends, nobody waits.
            let _ = stopped.await;
        }
    }
}

fn verdict(outcome: Outcome, reason: &str) -> Verdict {
    Verdict {
        outcome: outcome.into(),
        reason: reason.chars().take(MAX_REASON / 4).collect(),
    }
}

/// Reads the `Open` of a stream that the other end opened.
pub(crate) async fn accept(send: SendStream, recv: RecvStream) -> Result<Accepted, FlowError> {
    let mut flow = Flow::new(send, recv);
    let open: Open = flow.recv.read_message().await?;
    match open.kind {
        Some(open::Kind::Control(Control {})) => {
            prefer(&flow);
            flow.send
                .write_message(&verdict(Outcome::Connected, ""))
                .await?;

            Ok(Accepted::Control(FlowIo::new(flow)))
        }
        Some(open::Kind::Dial(dial)) => {
            let target = target(&dial).ok_or(FlowError::Malformed("a dial without a target"))?;
            let pending = PendingFlow { flow };

            Ok(Accepted::Dial { target, pending })
        }
        None => {
            let pending = PendingFlow { flow };
            pending
                .refuse(
                    Outcome::Prohibited,
                    "this version does not know the request",
                )
                .await;

            Err(FlowError::Malformed("an unknown kind of stream"))
        }
    }
}

fn target(dial: &Dial) -> Option<SocketAddr> {
    let port = u16::try_from(dial.port).ok().filter(|port| *port != 0)?;
    let ip: IpAddr = match dial.address.len() {
        4 => <[u8; 4]>::try_from(&*dial.address).ok()?.into(),
        16 => <[u8; 16]>::try_from(&*dial.address).ok()?.into(),
        _ => return None,
    };

    Some(SocketAddr::new(ip, port))
}

/// Opens a control stream.
pub(crate) async fn open_control(
    send: SendStream,
    recv: RecvStream,
) -> Result<(FlowIo, Verdict), FlowError> {
    let kind = open::Kind::Control(Control {});
    let mut flow = Flow::new(send, recv);
    prefer(&flow);
    let verdict = ask(&mut flow, kind).await?;

    Ok((FlowIo::new(flow), verdict))
}

/// Asks the other end to dial `target`.
pub(crate) async fn open_dial(
    send: SendStream,
    recv: RecvStream,
    target: SocketAddr,
) -> Result<(Flow, Verdict), FlowError> {
    let address = match target.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    let port = target.port().into();
    let mut flow = Flow::new(send, recv);
    let verdict = ask(&mut flow, open::Kind::Dial(Dial { address, port })).await?;

    Ok((flow, verdict))
}

async fn ask(flow: &mut Flow, kind: open::Kind) -> Result<Verdict, FlowError> {
    flow.send.write_message(&Open { kind: Some(kind) }).await?;

    flow.recv.read_message().await
}

fn prefer(flow: &Flow) {
    // Fails only if the stream has ended already, which the next write reports.
    let _ = flow.send.stream.set_priority(CONTROL_PRIORITY);
}

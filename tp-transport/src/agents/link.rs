//! Messages and bytes over TLS.

use std::{
    io::{self, IoSlice},
    marker::PhantomData,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use prost::Message;
use socket2::SockRef;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf,
        split,
    },
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::keys::AnotherKey;

/// Longest message, in bytes: a service account token has one to two thousand.
const MAX_MESSAGE: usize = 16 << 10;

/// Why a connection between agent and manager does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It failed; `UnexpectedEof` where the other end has gone without a word.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The other end is no manager, or another one.
    #[error(transparent)]
    AnotherKey(#[from] AnotherKey),
    /// The other end did not keep to the protocol.
    #[error("the other end broke the protocol of agents: {0}")]
    Malformed(&'static str),
    /// The manager does not serve it, for this reason.
    #[error("the traffic manager refuses the agent: {0}")]
    Refused(String),
    /// The other end was silent for too long.
    #[error("the other end did not answer in time")]
    TimedOut,
}

/// A connection whose failure can be waited for while TLS has it.
#[derive(Debug)]
pub(super) struct SharedTcp(Arc<TcpStream>);

impl SharedTcp {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self(Arc::new(tcp))
    }
}

impl AsyncRead for SharedTcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SharedTcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

/// One end of a connection, after its handshake.
#[derive(Debug)]
pub(super) struct Link {
    tls: TlsStream<SharedTcp>,
}

impl Link {
    pub(super) fn new(tls: TlsStream<SharedTcp>) -> io::Result<Self> {
        let tcp = &*tls.get_ref().0.0;
        tcp.set_nodelay(true)?;
        // Closed before its end, it is reset.
        SockRef::from(tcp).set_linger(Some(Duration::ZERO))?;

        Ok(Self { tls })
    }

    /// Material that only the two ends of this connection have.
    pub(super) fn exported<const N: usize>(&self, label: &[u8]) -> Result<[u8; N], AgentError> {
        let exported = match &self.tls {
            TlsStream::Client(tls) => tls.get_ref().1.export_keying_material([0; N], label, None),
            TlsStream::Server(tls) => tls.get_ref().1.export_keying_material([0; N], label, None),
        };

        exported.map_err(|_| AgentError::Malformed("the handshake is not over"))
    }

    pub(super) async fn send(&mut self, message: &impl Message) -> Result<(), AgentError> {
        send(&mut self.tls, message).await
    }

    pub(super) async fn receive<T: Message + Default>(&mut self) -> Result<T, AgentError> {
        receive(&mut self.tls).await
    }

    /// Resolves when the other end has closed the connection, or sent what it should not.
    pub(super) async fn ended(&mut self) {
        // Whatever it is, nothing should come.
        let _ = self.tls.read_u8().await;
    }

    pub(super) fn into_flow(self) -> AgentFlow {
        AgentFlow { tls: self.tls }
    }

    pub(super) fn split<S, R>(self) -> (Sender<S>, Receiver<R>) {
        let (reader, writer) = split(self.tls);
        let (sent, received) = (PhantomData, PhantomData);

        (Sender { writer, sent }, Receiver { reader, received })
    }
}

/// Sends messages of one kind.
#[derive(Debug)]
pub struct Sender<T> {
    writer: WriteHalf<TlsStream<SharedTcp>>,
    sent: PhantomData<fn(T)>,
}

impl<T: Message> Sender<T> {
    /// Sends a message, or what is left of it if the future is dropped: then nothing else may be sent.
    ///
    /// # Errors
    ///
    /// [`AgentError::Io`], and [`AgentError::Malformed`] for a message of more than 16 KiB.
    pub async fn send(&mut self, message: &T) -> Result<(), AgentError> {
        send(&mut self.writer, message).await
    }
}

/// Receives messages of one kind.
#[derive(Debug)]
pub struct Receiver<T> {
    reader: ReadHalf<TlsStream<SharedTcp>>,
    received: PhantomData<fn() -> T>,
}

impl<T: Message + Default> Receiver<T> {
    /// The next message. What was read of it is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`AgentError::Io`] once the other end has gone, and [`AgentError::Malformed`].
    pub async fn receive(&mut self) -> Result<T, AgentError> {
        receive(&mut self.reader).await
    }
}

async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
) -> Result<(), AgentError> {
    let length = message.encoded_len();
    let prefix = u16::try_from(length)
        .ok()
        .filter(|_| length <= MAX_MESSAGE)
        .ok_or(AgentError::Malformed("a message is too long to be sent"))?;
    let mut frame = Vec::with_capacity(2 + length);
    frame.extend_from_slice(&prefix.to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    writer.write_all(&frame).await?;
    writer.flush().await?;

    Ok(())
}

async fn receive<T: Message + Default>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<T, AgentError> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_MESSAGE {
        return Err(AgentError::Malformed("a message is too long"));
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).await?;

    T::decode(&*frame).map_err(|_| AgentError::Malformed("a message cannot be decoded"))
}

/// The raw bytes of an intercepted connection. Shutting it down ends its direction; dropped before both
/// directions have ended, it is reset. Reading fails with `UnexpectedEof` if the other end has reset it:
/// a truncated flow never ends cleanly.
#[derive(Debug)]
pub struct AgentFlow {
    tls: TlsStream<SharedTcp>,
}

impl AgentFlow {
    /// The connection beneath, and both directions.
    pub(super) fn split(self) -> (Arc<TcpStream>, ReadHalf<Self>, WriteHalf<Self>) {
        let tcp = Arc::clone(&self.tls.get_ref().0.0);
        let (reader, writer) = split(self);

        (tcp, reader, writer)
    }
}

impl AsyncRead for AgentFlow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AgentFlow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

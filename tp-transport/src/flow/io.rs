//! A stream as gRPC uses it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, server::Connected};

use super::{Flow, FlowError};

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
    ///
    /// # Errors
    ///
    /// If HTTP/2 does not begin on the stream.
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

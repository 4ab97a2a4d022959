//! `pods/portforward` over a WebSocket, as one byte stream; over SPDY, as kubectl does, where a proxy
//! before the API server passes no WebSocket.
//!
//! Not kube's own `Portforwarder`: it sends 4 KiB a message, through a task and a queue of one, and so
//! reaches a tenth of the throughput (docs/performance.md).

use std::{future::ready, io};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use kube::{Client, Error, api::Request};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::{
    codec::{BytesCodec, FramedWrite},
    either::Either,
    io::{CopyToBytes, ReaderStream, SinkWriter, StreamReader},
};

use channels::Channels;
use spdy::Frames;
use upgrade::{Refusal, UpgradeError};

mod channels;
mod spdy;
mod upgrade;

/// The most bytes read at once.
const READ_SIZE: usize = 64 << 10;

/// A proxy before the API server passes neither kind of upgrade.
#[derive(Debug, thiserror::Error)]
#[error(
    "a proxy or gateway before the API server passes neither a WebSocket ({websocket}) nor SPDY \
     ({spdy})"
)]
pub(super) struct UpgradeBlocked {
    websocket: Refusal,
    spdy: Refusal,
}

/// Opens a byte stream to `port` of `pod`; `pods` is the URL path of the namespace's pods.
pub(super) async fn open(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Error> {
    let websocket = match over_websocket(client, pods, pod, port).await {
        Ok(forwarded) => return Ok(Either::Left(forwarded)),
        Err(UpgradeError::Failed(error)) => return Err(error),
        Err(UpgradeError::Refused(refusal)) => refusal,
    };
    tracing::info!(pod, %websocket, "No WebSocket is passed, trying SPDY");
    match over_spdy(client, pods, pod, port).await {
        Ok(forwarded) => Ok(Either::Right(forwarded)),
        Err(UpgradeError::Failed(error)) => Err(error),
        Err(UpgradeError::Refused(Refusal::ApiServer(said))) => Err(Error::Api(said)),
        Err(UpgradeError::Refused(spdy)) => {
            Err(Error::Service(UpgradeBlocked { websocket, spdy }.into()))
        }
    }
}

fn request(pods: &str, pod: &str, port: u16) -> Result<hyper::Request<Vec<u8>>, Error> {
    Request::new(pods)
        .portforward(pod, &[port])
        .map_err(Error::BuildRequest)
}

async fn over_websocket(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, UpgradeError> {
    let protocols = [spdy::PROTOCOL, channels::PROTOCOL];
    let request = request(pods, pod, port)?;
    let (websocket, protocol) = upgrade::websocket(client, request, &protocols).await?;
    let (mut sink, messages) = websocket.split();
    tracing::info!(pod, port, protocol, "Port forwarded");
    let (message, mut framing): (fn(&[u8]) -> Bytes, _) = if protocol == spdy::PROTOCOL {
        let opening = spdy::opening(port).map_err(|error| Error::Service(error.into()))?;
        let sent = sink.send(Message::Binary(opening)).await;
        sent.map_err(|error| Error::Service(error.into()))?;
        (spdy::message, Framing::Spdy(Frames::default()))
    } else {
        (channels::message, Framing::Channels(Channels::default()))
    };
    let data = messages.flat_map(move |message| stream::iter(framing.data(message)));
    let sink = sink
        .sink_map_err(io::Error::other)
        .with(move |data: Bytes| ready(Ok::<_, io::Error>(Message::Binary(message(&data)))));

    Ok(tokio::io::join(
        StreamReader::new(data),
        SinkWriter::new(CopyToBytes::new(sink)),
    ))
}

/// The same frames, without a WebSocket around them.
async fn over_spdy(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, UpgradeError> {
    let upgraded = upgrade::spdy(client, request(pods, pod, port)?).await?;
    let (far, mut near) = tokio::io::split(upgraded);
    let opening = spdy::opening(port).map_err(|error| Error::Service(error.into()))?;
    let sent = near.write_all(&opening).await;
    sent.map_err(|error| Error::Service(error.into()))?;
    tracing::info!(pod, port, protocol = upgrade::SPDY, "Port forwarded");
    let mut frames = Frames::default();
    let data = ReaderStream::with_capacity(far, READ_SIZE).flat_map(move |bytes| {
        stream::iter(match bytes {
            Ok(mut bytes) => std::iter::from_fn(|| frames.next(&mut bytes)).collect(),
            Err(error) => vec![Err(error)],
        })
    });
    let sink = FramedWrite::new(near, BytesCodec::new())
        .with(|data: Bytes| ready(Ok::<_, io::Error>(spdy::message(&data))));

    Ok(tokio::io::join(
        StreamReader::new(data),
        SinkWriter::new(CopyToBytes::new(sink)),
    ))
}

/// The framing of the far side's data in WebSocket messages.
enum Framing {
    Spdy(Frames),
    Channels(Channels),
}

impl Framing {
    /// The pieces of data of one message; nothing follows an error.
    fn data(&mut self, message: tungstenite::Result<Message>) -> Vec<io::Result<Bytes>> {
        let mut bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(_) => return Vec::new(),
            Err(error) => return vec![Err(io::Error::other(error))],
        };

        match self {
            Self::Spdy(frames) => std::iter::from_fn(|| frames.next(&mut bytes)).collect(),
            Self::Channels(channels) => channels.data(bytes).into_iter().collect(),
        }
    }
}

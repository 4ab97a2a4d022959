//! `pods/portforward` over a WebSocket, as one byte stream; over SPDY where something before the API
//! server passes no WebSocket, as kubectl does it.
//!
//! Not kube's own `Portforwarder`: that sends 4 KiB a message, by way of a task and a queue of one,
//! and so reaches a tenth of what the same way carries (docs/performance.md).

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
use upgrade::{NoUpgrade, Refusal};

mod channels;
mod spdy;
mod upgrade;

/// Of what is read at once.
const READ_SIZE: usize = 64 << 10;

/// Neither way is passed on by what stands before the API server.
#[derive(Debug, thiserror::Error)]
#[error(
    "a proxy or gateway before the API server passes neither a WebSocket ({websocket}) nor SPDY \
     ({spdy})"
)]
pub(super) struct NotPassed {
    websocket: Refusal,
    spdy: Refusal,
}

/// Opens a byte stream to `port` of a pod, whose objects are below `pods`.
pub(super) async fn open(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Error> {
    let websocket = match over_websocket(client, pods, pod, port).await {
        Ok(forwarded) => return Ok(Either::Left(forwarded)),
        Err(NoUpgrade::Failed(error)) => return Err(error),
        Err(NoUpgrade::Refused(refusal)) => refusal,
    };
    tracing::info!(pod, %websocket, "No WebSocket is passed, trying SPDY");
    match over_spdy(client, pods, pod, port).await {
        Ok(forwarded) => Ok(Either::Right(forwarded)),
        Err(NoUpgrade::Failed(error)) => Err(error),
        Err(NoUpgrade::Refused(Refusal::ApiServer(said))) => Err(Error::Api(said)),
        Err(NoUpgrade::Refused(spdy)) => Err(Error::Service(NotPassed { websocket, spdy }.into())),
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
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, NoUpgrade> {
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

/// The same frames, on the connection itself.
async fn over_spdy(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, NoUpgrade> {
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

/// How the far side's data stands in its messages.
enum Framing {
    Spdy(Frames),
    Channels(Channels),
}

impl Framing {
    /// The pieces of data of one message; after an error nothing more is to be read.
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

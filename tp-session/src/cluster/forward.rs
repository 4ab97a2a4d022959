//! `pods/portforward` over a WebSocket, as one byte stream.
//!
//! Not kube's own `Portforwarder`: that sends 4 KiB a message, by way of a task and a queue of one,
//! and so reaches a tenth of what the same way carries (docs/performance.md).

use std::{future::ready, io};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use kube::{Client, Error, api::Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use channels::Channels;
use spdy::Frames;

mod channels;
mod spdy;
mod upgrade;

/// Opens a byte stream to `port` of a pod, whose objects are below `pods`.
pub(super) async fn open(
    client: &Client,
    pods: &str,
    pod: &str,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Error> {
    let request = Request::new(pods)
        .portforward(pod, &[port])
        .map_err(Error::BuildRequest)?;
    let protocols = [spdy::PROTOCOL, channels::PROTOCOL];
    let (websocket, protocol) = upgrade::upgrade(client, request, &protocols).await?;
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

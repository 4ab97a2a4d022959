//! `pods/portforward` over a WebSocket, as one byte stream.
//!
//! Not kube's own `Portforwarder`: that sends 4 KiB a message, by way of a task and a queue of one,
//! and so reaches a tenth of what the same way carries (docs/performance.md).
//!
//! Every message begins with its channel: 0 is data, 1 is where the far side tells an error. The
//! first message of each channel is the port, two bytes (k8s.io/kubelet, `cri/streaming`).

use std::{future::ready, io};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use kube::{Client, Error, api::Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

const DATA: u8 = 0;
const ERROR: u8 = 1;
/// The port that begins each channel.
const PORT_SIZE: usize = 2;

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
    let (sink, messages) = client.connect(request).await?.into_stream().split();
    let mut channels = Channels::default();
    let data = messages
        .map(move |message| channels.data(message))
        .filter_map(|data| ready(data.transpose()));
    let sink = sink
        .sink_map_err(io::Error::other)
        .with(|data: Bytes| ready(Ok::<_, io::Error>(message(&data))));

    Ok(tokio::io::join(
        StreamReader::new(data),
        SinkWriter::new(CopyToBytes::new(sink)),
    ))
}

/// One message of data.
fn message(data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(DATA);
    message.extend_from_slice(data);

    Message::Binary(message.freeze())
}

/// Which channels have told their port.
#[derive(Default)]
struct Channels([bool; 2]);

impl Channels {
    /// The payload of a message, if it has any.
    fn data(&mut self, message: tungstenite::Result<Message>) -> io::Result<Option<Bytes>> {
        let Message::Binary(mut bytes) = message.map_err(io::Error::other)? else {
            return Ok(None);
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        let channel = bytes.split_to(1)[0];
        let Some(opened) = self.0.get_mut(usize::from(channel)) else {
            return Err(io::Error::other(format!(
                "the port-forward has no channel {channel}"
            )));
        };
        if !std::mem::replace(opened, true) {
            return if bytes.len() == PORT_SIZE {
                Ok(None)
            } else {
                Err(io::Error::other(
                    "the port-forward does not begin with its port",
                ))
            };
        }
        if channel == ERROR {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            return Err(io::Error::other(text));
        }

        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(bytes: &[u8]) -> Message {
        Message::Binary(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn data_follows_the_port() {
        let mut channels = Channels::default();

        assert_eq!(channels.data(Ok(binary(&[0, 0x59, 0x1b]))).unwrap(), None);
        assert_eq!(channels.data(Ok(binary(&[1, 0x59, 0x1b]))).unwrap(), None);
        assert_eq!(
            channels.data(Ok(Message::Ping(Bytes::new()))).unwrap(),
            None
        );
        assert_eq!(
            channels.data(Ok(binary(&[0, 7, 8]))).unwrap(),
            Some(Bytes::from_static(&[7, 8]))
        );
        assert_eq!(channels.data(Ok(binary(&[0]))).unwrap(), None);
    }

    #[test]
    fn what_the_far_side_tells_ends_the_stream_with_its_words() {
        let mut channels = Channels::default();
        channels.data(Ok(binary(&[1, 0x59, 0x1b]))).unwrap();

        let error = channels
            .data(Ok(binary(b"\x01connection refused")))
            .unwrap_err();

        assert_eq!(error.to_string(), "connection refused");
        assert!(channels.data(Ok(binary(&[2, 0, 0]))).is_err());
        assert!(channels.data(Ok(binary(&[0, 1]))).is_err());
    }

    #[test]
    fn a_message_begins_with_its_channel() {
        assert_eq!(message(b"ab"), Message::Binary(Bytes::from_static(b"\0ab")));
    }
}

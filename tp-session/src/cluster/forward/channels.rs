//! The channels of `v4.channel.k8s.io`, for API servers before Kubernetes 1.31.
//!
//! Every message begins with its channel: 0 is data, 1 is the far side's error. The
//! first message of each channel is the port, two bytes (k8s.io/kubelet, `cri/streaming`).

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};

pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";

const DATA: u8 = 0;
const ERROR: u8 = 1;
/// The port that begins each channel.
const PORT_SIZE: usize = 2;

/// One message of data.
pub(super) fn message(data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(DATA);
    message.extend_from_slice(data);

    message.freeze()
}

/// The channels that have sent their port.
#[derive(Default)]
pub(super) struct Channels([bool; 2]);

impl Channels {
    /// The data of a message, if it has any.
    pub(super) fn data(&mut self, mut message: Bytes) -> Option<io::Result<Bytes>> {
        if message.is_empty() {
            return None;
        }
        let channel = message.split_to(1)[0];
        let Some(opened) = self.0.get_mut(usize::from(channel)) else {
            return Some(Err(io::Error::other(format!(
                "the port-forward has no channel {channel}"
            ))));
        };
        if !std::mem::replace(opened, true) {
            return (message.len() != PORT_SIZE).then(|| {
                Err(io::Error::other(
                    "the port-forward does not begin with its port",
                ))
            });
        }
        if channel == ERROR {
            let text = String::from_utf8_lossy(&message).into_owned();
            return Some(Err(io::Error::other(text)));
        }

        Some(message).filter(|message| !message.is_empty()).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(channels: &mut Channels, message: &'static [u8]) -> Option<io::Result<Bytes>> {
        channels.data(Bytes::from_static(message))
    }

    #[test]
    fn data_follows_the_port() {
        let mut channels = Channels::default();

        assert!(data(&mut channels, &[0, 0x59, 0x1b]).is_none());
        assert!(data(&mut channels, &[1, 0x59, 0x1b]).is_none());
        assert_eq!(
            data(&mut channels, &[0, 7, 8]).unwrap().unwrap(),
            Bytes::from_static(&[7, 8])
        );
        assert!(data(&mut channels, &[0]).is_none());
        assert!(data(&mut channels, &[]).is_none());
    }

    #[test]
    fn what_the_far_side_tells_ends_the_stream_with_its_words() {
        let mut channels = Channels::default();
        assert!(data(&mut channels, &[1, 0x59, 0x1b]).is_none());

        let error = data(&mut channels, b"\x01connection refused").unwrap();

        assert_eq!(error.unwrap_err().to_string(), "connection refused");
        assert!(data(&mut channels, &[2, 0, 0]).unwrap().is_err());
        assert!(data(&mut channels, &[0, 1]).unwrap().is_err());
    }

    #[test]
    fn a_message_begins_with_its_channel() {
        assert_eq!(message(b"ab"), Bytes::from_static(b"\0ab"));
    }
}

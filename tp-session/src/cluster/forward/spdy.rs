//! SPDY/3.1 in the messages of a WebSocket (KEP-4006), as far as a port-forward needs it.
//! kubectl speaks it, and API servers offer it since Kubernetes 1.31.
//!
//! The messages carry a byte stream of frames (SPDY Protocol, draft 3.1, section 2.2). Two streams
//! are opened, one for data and one for the far side's error. Flow control (section 2.6.8) is left
//! to TCP, as in the kubelet, which reads no WINDOW_UPDATE. PING is not answered: the kubelet sends
//! none.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

pub(super) const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

const ERROR_STREAM: u32 = 1;
const DATA_STREAM: u32 = 3;

/// The header of every frame: stream or type, flags, length.
const HEADER_SIZE: usize = 8;
/// The first bit of a control frame, and version 3.
const CONTROL: u32 = 0x8003_0000;
const SYN_STREAM: u32 = CONTROL | 1;
const RST_STREAM: u32 = CONTROL | 3;
const GOAWAY: u32 = CONTROL | 7;
const FLAG_FIN: u8 = 1;

/// The most data in one frame, as in kubectl. The kubelet bounds its queue by the number of frames.
const MAX_FRAME_DATA: usize = 32 << 10;
/// The most bytes that are kept of a control frame or of an error's text.
const MAX_KEPT: usize = 4 << 10;

/// The frames that open both streams to a port.
pub(super) fn opening(port: u16) -> io::Result<Bytes> {
    let port = port.to_string();
    // One for both frames: the far side reads all headers as one compressed stream (2.6.10.1). It uses
    // no preset dictionary, which a decompressor accepts as well (RFC 1950, FDICT).
    let mut compress = Compress::new(Compression::fast(), true);
    let mut bytes = BytesMut::new();
    for (stream, kind) in [(ERROR_STREAM, "error"), (DATA_STREAM, "data")] {
        let headers = [("port", &*port), ("requestid", "0"), ("streamtype", kind)];
        let block = header_block(&mut compress, &headers)?;
        bytes.put_u32(SYN_STREAM);
        put_length(&mut bytes, 10 + block.len());
        bytes.put_u32(stream);
        // No associated stream, the highest priority, no slot.
        bytes.put_u32(0);
        bytes.put_u16(0);
        bytes.put_slice(&block);
    }

    Ok(bytes.freeze())
}

fn header_block(compress: &mut Compress, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut plain = BytesMut::new();
    put_length(&mut plain, headers.len());
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        put_length(&mut plain, text.len());
        plain.put_slice(text.as_bytes());
    }
    let mut block = Vec::with_capacity(64 + plain.len());
    compress.compress_vec(&plain, &mut block, FlushCompress::Sync)?;

    Ok(block)
}

/// A length with no flags.
fn put_length(bytes: &mut BytesMut, length: usize) {
    bytes.put_u32(u32::try_from(length).expect("frames are far below 16 MiB"));
}

/// One message of data.
pub(super) fn message(data: &[u8]) -> Bytes {
    let frames = data.len().div_ceil(MAX_FRAME_DATA);
    let mut message = BytesMut::with_capacity(data.len() + frames * HEADER_SIZE);
    for chunk in data.chunks(MAX_FRAME_DATA) {
        message.put_u32(DATA_STREAM);
        put_length(&mut message, chunk.len());
        message.put_slice(chunk);
    }

    message.freeze()
}

/// The frames of the far side, which begin and end anywhere in its messages.
#[derive(Default)]
pub(super) struct Frames {
    header: BytesMut,
    frame: Option<Frame>,
}

/// A frame whose header has been read.
struct Frame {
    /// The stream of a data frame, the type of a control frame.
    stream_or_type: u32,
    is_last: bool,
    /// Bytes that have not arrived.
    left: usize,
    kept: BytesMut,
}

impl Frames {
    /// Takes `message` up to the next piece of data; `None` when it holds no more.
    pub(super) fn next(&mut self, message: &mut Bytes) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(frame) = self.frame.take_if(|frame| frame.left == 0) {
                if let Some(error) = frame.end() {
                    return Some(Err(error));
                }
            } else if let Some(frame) = &mut self.frame {
                if message.is_empty() {
                    return None;
                }
                let piece = message.split_to(frame.left.min(message.len()));
                frame.left -= piece.len();
                if frame.stream_or_type == DATA_STREAM {
                    return Some(Ok(piece));
                }
                frame.keep(&piece);
            } else {
                let missing = HEADER_SIZE - self.header.len();
                self.header
                    .put(message.split_to(missing.min(message.len())));
                if self.header.len() < HEADER_SIZE {
                    return None;
                }
                self.frame = Some(Frame::read(&mut self.header));
            }
        }
    }
}

impl Frame {
    fn read(header: &mut BytesMut) -> Self {
        let stream_or_type = header.get_u32();
        let flags = header.get_u8();

        Self {
            stream_or_type,
            is_last: flags & FLAG_FIN != 0,
            left: usize::try_from(header.get_uint(3)).expect("24 bits"),
            kept: BytesMut::new(),
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = MAX_KEPT - self.kept.len();
        self.kept.put(&piece[..room.min(piece.len())]);
    }

    /// The error with which a complete frame ends the stream, if it does.
    fn end(self) -> Option<io::Error> {
        match self.stream_or_type {
            DATA_STREAM if self.is_last => Some(ended("closed the stream")),
            ERROR_STREAM if !self.kept.is_empty() => Some(io::Error::other(
                String::from_utf8_lossy(&self.kept).into_owned(),
            )),
            RST_STREAM => Some(ended("reset the stream")),
            GOAWAY => Some(ended("is going away")),
            _ => None,
        }
    }
}

fn ended(how: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the far side of the port-forward {how}"),
    )
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};

    use super::*;

    /// The control frames that begin `bytes`, as type, flags and payload.
    fn control_frames(mut bytes: Bytes) -> Vec<(u32, u8, Bytes)> {
        let mut frames = Vec::new();
        while bytes.has_remaining() {
            let (of, flags) = (bytes.get_u32(), bytes.get_u8());
            let length = usize::try_from(bytes.get_uint(3)).unwrap();
            frames.push((of, flags, bytes.split_to(length)));
        }
        frames
    }

    fn headers(decompress: &mut Decompress, block: &[u8]) -> Vec<(String, String)> {
        let mut plain = Vec::with_capacity(1024);
        decompress
            .decompress_vec(block, &mut plain, FlushDecompress::Sync)
            .unwrap();
        let mut plain = Bytes::from(plain);
        let text = |plain: &mut Bytes| {
            let length = usize::try_from(plain.get_u32()).unwrap();
            String::from_utf8(plain.split_to(length).to_vec()).unwrap()
        };
        let count = plain.get_u32();
        let headers = (0..count)
            .map(|_| (text(&mut plain), text(&mut plain)))
            .collect();
        assert!(plain.is_empty());

        headers
    }

    fn frame(of: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.put_u32(of);
        bytes.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap());
        bytes.put_slice(payload);
        bytes.to_vec()
    }

    /// The data in messages of `size` bytes, and the error that ends it.
    fn read(bytes: &[u8], size: usize) -> (Vec<u8>, Option<String>) {
        let mut frames = Frames::default();
        let mut data = Vec::new();
        for message in bytes.chunks(size) {
            let mut message = Bytes::copy_from_slice(message);
            while let Some(piece) = frames.next(&mut message) {
                match piece {
                    Ok(piece) => data.extend_from_slice(&piece),
                    Err(error) => return (data, Some(error.to_string())),
                }
            }
            assert!(message.is_empty());
        }
        (data, None)
    }

    #[test]
    fn both_streams_are_opened_with_their_port_and_kind() {
        let frames = control_frames(opening(7001).unwrap());
        let mut decompress = Decompress::new(true);

        assert_eq!(frames.len(), 2);
        for ((of, flags, mut payload), (stream, kind)) in
            frames.into_iter().zip([(1, "error"), (3, "data")])
        {
            assert_eq!((of, flags), (0x8003_0001, 0));
            assert_eq!(payload.get_u32(), stream);
            assert_eq!((payload.get_u32(), payload.get_u16()), (0, 0));
            let expected = [("port", "7001"), ("requestid", "0"), ("streamtype", kind)];
            assert_eq!(
                headers(&mut decompress, &payload),
                expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
            );
        }
    }

    #[test]
    fn data_is_sent_in_frames_of_the_data_stream() {
        let data: Vec<u8> = (0..MAX_FRAME_DATA + 5)
            .map(|at| at.to_le_bytes()[0])
            .collect();

        let frames = control_frames(message(&data));

        let of = frames.iter().map(|(of, flags, _)| (*of, *flags));
        assert_eq!(of.collect::<Vec<_>>(), [(3, 0), (3, 0)]);
        assert_eq!(frames[0].2, data[..MAX_FRAME_DATA]);
        assert_eq!(frames[1].2, data[MAX_FRAME_DATA..]);
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let bytes = [
            frame(0x8003_0002, 0, &[0, 0, 0, 1]),
            frame(0x8003_0002, 0, &[0, 0, 0, 3, 120, 156]),
            frame(3, 0, b"ab"),
            frame(3, 0, b""),
            frame(1, 0, b""),
            frame(0x8003_0004, 0, &[9; MAX_KEPT + 1]),
            frame(3, FLAG_FIN, b"cde"),
        ]
        .concat();

        for size in [1, 3, 7, 8, 9, 13, bytes.len()] {
            let (data, error) = read(&bytes, size);
            assert_eq!(data, b"abcde", "messages of {size} bytes");
            let error = error.unwrap();
            assert!(error.ends_with("closed the stream"), "{error}");
        }
    }

    #[test]
    fn what_the_far_side_tells_ends_the_stream_with_its_words() {
        let told = frame(1, 0, b"connection refused");
        assert_eq!(read(&told, 4).1.unwrap(), "connection refused");

        for (of, words) in [(RST_STREAM, "reset the stream"), (GOAWAY, "is going away")] {
            let error = read(&frame(of, 0, &[0, 0, 0, 3, 0, 0, 0, 1]), 16)
                .1
                .unwrap();
            assert!(error.ends_with(words), "{error}");
        }
    }
}

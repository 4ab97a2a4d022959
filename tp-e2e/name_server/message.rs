//! The part of DNS messages that the tests need (RFC 1035 section 4).

use std::net::Ipv4Addr;

pub(crate) const A: u16 = 1;
const SOA: u16 = 6;
pub(crate) const AXFR: u16 = 252;
/// A type for private use (RFC 6895 section 3.1).
const PRIVATE: u16 = 65_280;

const HEADER: usize = 12;
/// A pointer to the name in the question.
const QUESTION: [u8; 2] = [0xc0, 12];
const TTL: [u8; 4] = [0, 0, 0, 60];
const NXDOMAIN: u8 = 3;

#[derive(Debug)]
pub(crate) struct Query {
    /// Header and question.
    bytes: Vec<u8>,
    /// Without the last dot, in lower case.
    pub(crate) name: String,
    pub(crate) kind: u16,
}

impl Query {
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let mut labels = Vec::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).to_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let bytes = message.get(..at + 4)?.to_vec();

        Some(Self {
            bytes,
            name: labels.join("."),
            kind,
        })
    }

    pub(crate) fn message(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message[..2].copy_from_slice(&id.to_be_bytes());
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).expect("labels are short"));
            message.extend(label.bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    pub(crate) fn label(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// A message under construction.
pub(crate) struct Reply {
    bytes: Vec<u8>,
    answers: u16,
}

impl Reply {
    pub(crate) fn to(query: &Query) -> Self {
        let mut bytes = query.bytes.clone();
        // A response, authoritative, with recursion; one question and no other counts yet.
        bytes[2..HEADER].copy_from_slice(&[0x85, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);

        Self { bytes, answers: 0 }
    }

    pub(crate) fn missing(mut self) -> Vec<u8> {
        self.bytes[3] |= NXDOMAIN;
        self.finish()
    }

    pub(crate) fn add_address(&mut self, address: Ipv4Addr) {
        self.add(A, &address.octets());
    }

    /// Adds the SOA record, with the root for both names.
    pub(crate) fn add_authority(&mut self) {
        self.add(SOA, &[0; 22]);
    }

    fn add(&mut self, kind: u16, data: &[u8]) {
        let length = u16::try_from(data.len()).expect("data is short");
        self.bytes.extend(QUESTION);
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend([0, 1]);
        self.bytes.extend(TTL);
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(data);
        self.answers += 1;
    }

    /// Adds one record that makes the message this long.
    pub(crate) fn padded(mut self, length: usize) -> Vec<u8> {
        let overhead = QUESTION.len() + 2 + 2 + TTL.len() + 2;
        let data = vec![7; length - self.bytes.len() - overhead];
        self.add(PRIVATE, &data);
        self.finish()
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
        self.bytes
    }
}

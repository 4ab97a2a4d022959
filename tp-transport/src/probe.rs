//! Probes: datagrams of our own that show whether a path carries full-size packets both ways.
//!
//! They differ from QUIC in the fixed bit, which every QUIC packet of ours has set, and carry a MAC
//! under a key from the TLS handshake. The key differs by direction, so that a probe cannot be
//! reflected; the counter grows, so that one cannot be replayed.

use ring::hmac;

/// Lengths of a probe's header and MAC, together the smallest probe. Between the two are a tag, if it
/// fits, and zeros.
const KIND: usize = 1;
const HEADER: usize = KIND + 8 + 8;
const MAC: usize = 32;
pub(crate) const MIN_SIZE: usize = HEADER + MAC;

/// Tag of a request: the answer is several small replies, sent together. The tag of a reply is its
/// index among them.
pub(crate) const REPLY_AS_BATCH: u8 = 1;
/// Tag of a request: datagrams to the client are to be sent one by one.
pub(crate) const DO_NOT_BATCH: u8 = 2;

const EXPORTER_LABEL: &[u8] = b"EXPORTER-tp-probe-1";
/// Bits that tell the forms apart: long header and fixed bit.
const FORM_BITS: u8 = 0xc0;
const SHORT_HEADER: u8 = 0x40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Request,
    Reply,
}

impl ProbeKind {
    fn byte(self) -> u8 {
        match self {
            Self::Request => 0x10,
            Self::Reply => 0x11,
        }
    }
}

/// The content of a genuine probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) counter: u64,
    /// 0 in a probe that is too small for one.
    pub(crate) tag: u8,
}

/// The form that a datagram's first byte claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// QUIC after the handshake.
    ShortHeader,
    /// QUIC during the handshake.
    LongHeader,
    Probe,
    Garbage,
}

pub(crate) fn form(datagram: &[u8]) -> Form {
    match datagram.first() {
        Some(first) if first & FORM_BITS == SHORT_HEADER => Form::ShortHeader,
        Some(first) if first & FORM_BITS == FORM_BITS => Form::LongHeader,
        Some(first) if first & FORM_BITS == 0 && datagram.len() >= MIN_SIZE => Form::Probe,
        Some(_) | None => Form::Garbage,
    }
}

/// The keys of one connection.
pub(crate) struct ProbeKeys {
    id: u64,
    request: hmac::Key,
    reply: hmac::Key,
}

impl std::fmt::Debug for ProbeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProbeKeys({:016x})", self.id)
    }
}

impl ProbeKeys {
    /// Both ends derive the same keys once the handshake is done.
    pub(crate) fn of_connection(connection: &quinn::Connection) -> Self {
        let mut material = [0; 72];
        connection
            .export_keying_material(&mut material, EXPORTER_LABEL, b"")
            .expect("the handshake is done and the length is allowed");

        Self::from_material(&material)
    }

    pub(crate) fn from_material(material: &[u8; 72]) -> Self {
        let (id, keys) = material.split_at(8);
        let (request, reply) = keys.split_at(32);

        Self {
            id: u64::from_be_bytes(id.try_into().expect("split at 8")),
            request: hmac::Key::new(hmac::HMAC_SHA256, request),
            reply: hmac::Key::new(hmac::HMAC_SHA256, reply),
        }
    }

    /// The id of the connection's keys, part of every probe.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// A probe of `size` bytes, at least [`MIN_SIZE`].
    pub(crate) fn seal(&self, kind: ProbeKind, content: Probe, size: usize) -> Vec<u8> {
        let mut probe = vec![0; size.max(MIN_SIZE)];
        let (body, mac) = probe.split_at_mut(size.max(MIN_SIZE) - MAC);
        body[0] = kind.byte();
        body[KIND..KIND + 8].copy_from_slice(&self.id.to_be_bytes());
        body[KIND + 8..HEADER].copy_from_slice(&content.counter.to_be_bytes());
        if let Some(tag) = body.get_mut(HEADER) {
            *tag = content.tag;
        }
        mac.copy_from_slice(hmac::sign(self.key(kind), body).as_ref());

        probe
    }

    /// The content of `probe`; `None` unless it is genuine, of this kind and of this connection.
    pub(crate) fn open(&self, kind: ProbeKind, probe: &[u8]) -> Option<Probe> {
        if probe.len() < MIN_SIZE || probe[0] != kind.byte() || key_id(probe) != Some(self.id) {
            return None;
        }
        let (body, mac) = probe.split_at(probe.len() - MAC);
        hmac::verify(self.key(kind), body, mac).ok()?;

        Some(Probe {
            counter: be64(&body[KIND + 8..HEADER]),
            tag: body.get(HEADER).copied().unwrap_or_default(),
        })
    }

    fn key(&self, kind: ProbeKind) -> &hmac::Key {
        match kind {
            ProbeKind::Request => &self.request,
            ProbeKind::Reply => &self.reply,
        }
    }
}

/// The id of the keys that a probe claims to be made with.
pub(crate) fn key_id(probe: &[u8]) -> Option<u64> {
    probe.get(KIND..KIND + 8).map(be64)
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Probe = Probe { counter: 7, tag: 1 };

    #[test]
    fn a_probe_opens_with_its_own_key_only() {
        let (ours, theirs) = (keys(1), keys(2));
        let content = Probe { counter: 7, tag: 3 };
        let probe = ours.seal(ProbeKind::Request, content, 1452);

        assert_eq!(probe.len(), 1452);
        assert_eq!(form(&probe), Form::Probe);
        assert_eq!(ours.open(ProbeKind::Request, &probe), Some(content));
        assert_eq!(theirs.open(ProbeKind::Request, &probe), None);
    }

    #[test]
    fn the_smallest_probe_has_no_tag() {
        let keys = keys(1);
        let probe = keys.seal(ProbeKind::Reply, CONTENT, 0);

        assert_eq!(probe.len(), MIN_SIZE);
        let content = keys.open(ProbeKind::Reply, &probe);
        assert_eq!(content, Some(Probe { tag: 0, ..CONTENT }));
    }

    #[test]
    fn a_request_cannot_be_sent_back_as_the_reply() {
        let keys = keys(1);
        let mut probe = keys.seal(ProbeKind::Request, CONTENT, 100);

        assert_eq!(keys.open(ProbeKind::Reply, &probe), None);
        probe[0] = ProbeKind::Reply.byte();
        assert_eq!(keys.open(ProbeKind::Reply, &probe), None);
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let keys = keys(1);
        let probe = keys.seal(ProbeKind::Request, CONTENT, 80);

        for index in 0..probe.len() {
            let mut forged = probe.clone();
            forged[index] ^= 1;
            assert_eq!(keys.open(ProbeKind::Request, &forged), None, "byte {index}");
            assert_eq!(keys.open(ProbeKind::Request, &probe[..index]), None);
        }
    }

    #[test]
    fn quic_is_told_from_probes_by_the_first_byte() {
        assert_eq!(form(&[0x40; 60]), Form::ShortHeader);
        assert_eq!(form(&[0xc0; 60]), Form::LongHeader);
        assert_eq!(form(&[0x80; 60]), Form::Garbage);
        assert_eq!(form(&[0x10; 20]), Form::Garbage);
        assert_eq!(form(&[]), Form::Garbage);
    }

    fn keys(seed: u8) -> ProbeKeys {
        ProbeKeys::from_material(&[seed; 72])
    }
}

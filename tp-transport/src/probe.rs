//! Probes: datagrams of our own that show whether a path carries full-size packets both ways.
//!
//! They are told from QUIC by the fixed bit, which every QUIC packet of ours has set, and
//! recognised by a MAC under a key from the TLS handshake. The key differs by direction, so that a
//! probe cannot be reflected; the counter grows, so that one cannot be replayed.

use ring::hmac;

/// Length of a probe's header and MAC: the least size of a probe. Between the two stands its tag,
/// where there is room, and zeros.
const KIND: usize = 1;
const HEADER: usize = KIND + 8 + 8;
const MAC: usize = 32;
pub(crate) const MIN_SIZE: usize = HEADER + MAC;

/// Tag of a request: it is to be answered by several small replies, sent together. The tag of a
/// reply is its place among them.
pub(crate) const IN_PARTS: u8 = 1;
/// Tag of a request: nothing is to be sent to the client together.
pub(crate) const SINGLY: u8 = 2;

const EXPORTER_LABEL: &[u8] = b"EXPORTER-tp-probe-1";
/// Bits that say what a datagram is: long header and fixed bit.
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

/// What a genuine probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) counter: u64,
    /// 0 where there is no room for one.
    pub(crate) tag: u8,
}

/// What a datagram claims to be, by its first byte alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// QUIC after the handshake.
    ShortHeader,
    /// QUIC of the handshake.
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

    /// Which connection's keys these are; stands in every probe.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// A probe of `size` bytes, at least [`MIN_SIZE`].
    pub(crate) fn seal(&self, kind: ProbeKind, said: Probe, size: usize) -> Vec<u8> {
        let mut probe = vec![0; size.max(MIN_SIZE)];
        let (body, mac) = probe.split_at_mut(size.max(MIN_SIZE) - MAC);
        body[0] = kind.byte();
        body[KIND..KIND + 8].copy_from_slice(&self.id.to_be_bytes());
        body[KIND + 8..HEADER].copy_from_slice(&said.counter.to_be_bytes());
        if let Some(tag) = body.get_mut(HEADER) {
            *tag = said.tag;
        }
        mac.copy_from_slice(hmac::sign(self.key(kind), body).as_ref());

        probe
    }

    /// What a genuine probe of this kind and connection says.
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

/// Which connection's keys a probe claims to be made with.
pub(crate) fn key_id(probe: &[u8]) -> Option<u64> {
    probe.get(KIND..KIND + 8).map(be64)
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: Probe = Probe { counter: 7, tag: 1 };

    #[test]
    fn a_probe_opens_with_its_own_key_only() {
        let (ours, theirs) = (keys(1), keys(2));
        let said = Probe { counter: 7, tag: 3 };
        let probe = ours.seal(ProbeKind::Request, said, 1452);

        assert_eq!(probe.len(), 1452);
        assert_eq!(form(&probe), Form::Probe);
        assert_eq!(ours.open(ProbeKind::Request, &probe), Some(said));
        assert_eq!(theirs.open(ProbeKind::Request, &probe), None);
    }

    #[test]
    fn the_smallest_probe_has_no_tag() {
        let keys = keys(1);
        let probe = keys.seal(ProbeKind::Reply, SAID, 0);

        assert_eq!(probe.len(), MIN_SIZE);
        let said = keys.open(ProbeKind::Reply, &probe);
        assert_eq!(said, Some(Probe { tag: 0, ..SAID }));
    }

    #[test]
    fn a_request_cannot_be_sent_back_as_the_reply() {
        let keys = keys(1);
        let mut probe = keys.seal(ProbeKind::Request, SAID, 100);

        assert_eq!(keys.open(ProbeKind::Reply, &probe), None);
        probe[0] = ProbeKind::Reply.byte();
        assert_eq!(keys.open(ProbeKind::Reply, &probe), None);
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let keys = keys(1);
        let probe = keys.seal(ProbeKind::Request, SAID, 80);

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

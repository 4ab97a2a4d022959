//! DNS over TCP in transit: messages with their length before them (RFC 1035 section 4.2.2).
//!
//! All bytes pass unchanged, and at once: only what may be a query for a name is held back until it
//! is complete.

use std::mem;

const LENGTH: usize = 2;
const HEADER: usize = 12;
/// Padded, with cookies and signatures, a query for one name stays far below this.
const MAX_QUERY: usize = 4096;

/// A part of what a resolver sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A message, with its length, that may be a query for one name.
    Query(Vec<u8>),
    /// Bytes to pass on.
    Other(Vec<u8>),
}

impl Part {
    /// The message of a framed query, without the two bytes of its length.
    pub fn message(framed: &[u8]) -> &[u8] {
        framed.get(LENGTH..).unwrap_or_default()
    }
}

/// The bytes on the way from the resolver to the server, in parts.
#[derive(Debug, Default)]
pub struct Queries {
    held: Vec<u8>,
    /// Bytes of the current message that pass as they come.
    passing: usize,
    /// Messages that pass on at the next boundary.
    deferred: Vec<Vec<u8>>,
    /// This is not DNS: nothing more is inspected.
    is_other: bool,
}

impl Queries {
    /// Takes what was read; [`Queries::next_part`] then gives what is to be done with it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next part that is ready; `None` until more is pushed.
    pub fn next_part(&mut self) -> Option<Part> {
        if self.passing == 0
            && !self.is_other
            && let Some(deferred) = self.deferred.pop()
        {
            return Some(Part::Other(deferred));
        }
        if self.held.is_empty() {
            return None;
        }
        if self.is_other {
            return Some(Part::Other(self.take(self.held.len())));
        }
        if self.passing > 0 {
            let count = self.passing.min(self.held.len());
            self.passing -= count;
            return Some(Part::Other(self.take(count)));
        }
        let [first, second, ..] = self.held[..] else {
            return None;
        };
        let length = LENGTH + length(first, second);
        if length < LENGTH + HEADER {
            self.is_other = true;
            return Some(Part::Other(self.take(self.held.len())));
        }
        if length > LENGTH + MAX_QUERY || !may_be_query(&self.held[LENGTH..]) {
            self.passing = length;
            return self.next_part();
        }

        (self.held.len() >= length).then(|| Part::Query(self.take(length)))
    }

    /// Puts a message back that was given as [`Part::Query`]: it passes on before what follows.
    pub fn pass_on(&mut self, framed: Vec<u8>) {
        self.deferred.push(framed);
    }

    /// The bytes that are left when the resolver has ended its side: half a message, if any.
    pub fn rest(&mut self) -> Vec<u8> {
        mem::take(&mut self.held)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.held.split_off(count);
        mem::replace(&mut self.held, rest)
    }
}

/// Returns whether the header of a message, as far as it has arrived, is that of a query for one
/// name: only such a query can be the cluster's.
fn may_be_query(message: &[u8]) -> bool {
    // Neither a response nor another opcode, no error, one question, no answer; an IXFR has a SOA
    // record as authority, and EDNS and TSIG are additional.
    const EXPECTED: [(u8, u8); 10] = [
        (0xf8, 0),
        (0x0f, 0),
        (0xff, 0),
        (0xff, 1),
        (0xff, 0),
        (0xff, 0),
        (0xff, 0),
        (0xfe, 0),
        (0xff, 0),
        (0xf8, 0),
    ];

    message
        .iter()
        .skip(2)
        .zip(EXPECTED)
        .all(|(byte, (mask, value))| byte & mask == value)
}

/// Finds where messages begin in the bytes from the server to the resolver.
#[derive(Debug, Default)]
pub struct Boundaries {
    /// Bytes of the current message that are still to come.
    left: usize,
    /// The first byte of a length whose second is still to come.
    half: Option<u8>,
}

impl Boundaries {
    /// Notes `bytes` that go by. Returns the last position among them that is between two messages;
    /// `None` if there is none.
    pub fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut last = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let count = self.left.min(bytes.len() - at);
                self.left -= count;
                at += count;
            } else if let Some(first) = self.half.take() {
                self.left = length(first, bytes[at]);
                at += 1;
            } else {
                self.half = Some(bytes[at]);
                at += 1;
            }
            if self.is_between_messages() {
                last = Some(at);
            }
        }

        last
    }

    /// True if the next byte begins a message, so that another message may go before it.
    pub fn is_between_messages(&self) -> bool {
        self.left == 0 && self.half.is_none()
    }
}

fn length(first: u8, second: u8) -> usize {
    usize::from(u16::from_be_bytes([first, second]))
}

/// `message` with its length before it, in two bytes of network byte order (RFC 1035 section
/// 4.2.2); `None` if it is longer than 65535 bytes.
pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;

    Some([&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for a.b with `more` after the question.
    fn query(id: u8, more: &[u8]) -> Vec<u8> {
        let header = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let question = [1, b'a', 1, b'b', 0, 0, 1, 0, 1];
        framed(&[&header, &question[..], more].concat()).unwrap()
    }

    fn parts(queries: &mut Queries) -> Vec<Part> {
        std::iter::from_fn(|| queries.next_part()).collect()
    }

    #[test]
    fn queries_are_told_apart_however_they_arrive() {
        let stream = [query(1, &[]), query(2, &[7; 40]), query(3, &[])].concat();

        for size in 1..=stream.len() {
            let mut queries = Queries::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                queries.push(chunk);
                seen.extend(parts(&mut queries));
            }

            let expected = [query(1, &[]), query(2, &[7; 40]), query(3, &[])];
            assert_eq!(seen, expected.map(Part::Query), "{size} bytes at a time");
            assert!(queries.rest().is_empty());
        }
    }

    #[test]
    fn what_cannot_be_the_clusters_waits_for_nothing() {
        let header = |at: usize, value: u8| {
            let mut message = query(1, &[0; 100]);
            message[LENGTH + at] = value;
            message[..LENGTH + HEADER + 20].to_vec()
        };
        for (what, begin) in [
            ("a response", header(2, 0x84)),
            ("an update", header(2, 0x28)),
            ("two questions", header(5, 2)),
            ("a record as answer", header(7, 1)),
            ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            ("HTTP", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
            (
                "a TLS hello",
                vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 9, 9],
            ),
        ] {
            let mut queries = Queries::default();
            queries.push(&begin);

            assert_eq!(parts(&mut queries), [Part::Other(begin)], "{what}");
        }
    }

    #[test]
    fn messages_after_a_foreign_one_are_seen() {
        let update = {
            let mut message = query(1, &[0; 30]);
            message[LENGTH + 2] = 0x28;
            message
        };
        let mut queries = Queries::default();
        queries.push(&[&update[..], &query(2, &[])].concat());

        assert_eq!(
            parts(&mut queries),
            [Part::Other(update), Part::Query(query(2, &[]))]
        );
    }

    #[test]
    fn what_has_no_room_for_a_header_is_no_dns_and_stays_so() {
        let mut queries = Queries::default();
        queries.push(&[0, 5, 1, 2, 3, 4, 5]);
        assert_eq!(
            parts(&mut queries),
            [Part::Other(vec![0, 5, 1, 2, 3, 4, 5])]
        );

        queries.push(&query(1, &[]));

        assert_eq!(parts(&mut queries), [Part::Other(query(1, &[]))]);
    }

    #[test]
    fn a_query_that_passes_on_late_does_so_between_messages() {
        let mut queries = Queries::default();
        let update = {
            let mut message = query(1, &[0; 30]);
            message[LENGTH + 2] = 0x28;
            message
        };
        queries.push(&update[..20]);
        assert_eq!(parts(&mut queries), [Part::Other(update[..20].to_vec())]);

        queries.pass_on(query(2, &[]));
        assert_eq!(parts(&mut queries), []);
        queries.push(&update[20..]);

        assert_eq!(
            parts(&mut queries),
            [
                Part::Other(update[20..].to_vec()),
                Part::Other(query(2, &[]))
            ]
        );
    }

    #[test]
    fn half_a_query_is_left_over_at_the_end() {
        let mut queries = Queries::default();
        let half = &query(1, &[])[..9];
        queries.push(half);

        assert_eq!(parts(&mut queries), []);
        assert_eq!(queries.rest(), half);
    }

    #[test]
    fn boundaries_are_found_however_the_bytes_arrive() {
        let stream = [query(1, &[]), vec![0, 0], query(2, &[7; 300])].concat();
        let first = query(1, &[]).len();
        let expected = [first, first + 2, stream.len()];

        for size in 1..=stream.len() {
            let mut boundaries = Boundaries::default();
            let mut at = 0;
            for chunk in stream.chunks(size) {
                let found = boundaries.push(chunk).map(|position| at + position);
                let last = expected
                    .into_iter()
                    .rfind(|end| (at + 1..=at + chunk.len()).contains(end));
                assert_eq!(found, last, "{size} bytes at a time, from {at}");
                at += chunk.len();
                assert_eq!(boundaries.is_between_messages(), expected.contains(&at));
            }
        }
    }
}

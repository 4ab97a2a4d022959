//! Joins full transmits of QUIC into larger ones.
//!
//! quinn hands over ten datagrams at most. The kernel takes 64 KiB of one size at once, and each
//! send passes its whole stack, filters and interfaces, whatever its size.

use std::net::SocketAddr;

use quinn::udp::{EcnCodepoint, Transmit};

/// Datagrams in a full transmit: as many as quinn makes at a time.
const FULL: usize = 10;
/// Most bytes in one send of several datagrams.
pub(super) const MAX_BATCH: usize = 65_000;

/// Datagrams of one size for one address that are to be sent at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    contents: Vec<u8>,
    segment_size: usize,
    destination: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
}

impl Batch {
    /// True if more transmits may follow this one, so that waiting for them pays.
    pub(super) fn pays(transmit: &Transmit<'_>) -> bool {
        let length = transmit.contents.len();
        // Two full transmits of jumbo frames do not fit: to take one in would only copy it.
        transmit
            .segment_size
            .is_some_and(|size| length == FULL * size && 2 * length <= MAX_BATCH)
    }

    /// True if the transmit may join the batch.
    pub(super) fn takes(&self, transmit: &Transmit<'_>) -> bool {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        // The last datagram may be shorter, and must stay the last.
        let fits = size == self.segment_size
            || transmit.segment_size.is_none() && size < self.segment_size;

        self.destination == Some(transmit.destination)
            && self.ecn == transmit.ecn
            && fits
            && self.contents.len().is_multiple_of(self.segment_size)
            && self.contents.len() + transmit.contents.len() <= MAX_BATCH
    }

    pub(super) fn push(&mut self, transmit: &Transmit<'_>) {
        if self.contents.is_empty() {
            self.segment_size = transmit.segment_size.unwrap_or(transmit.contents.len());
            self.destination = Some(transmit.destination);
            self.ecn = transmit.ecn;
            self.contents.reserve_exact(MAX_BATCH);
        }
        self.contents.extend_from_slice(transmit.contents);
    }

    /// True if another full transmit does not fit.
    pub(super) fn is_full(&self) -> bool {
        self.contents.len() + FULL * self.segment_size > MAX_BATCH
    }

    /// The whole batch as one transmit.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        Some(Transmit {
            destination: self.destination?,
            ecn: self.ecn,
            contents: &self.contents,
            segment_size: Some(self.segment_size).filter(|size| self.contents.len() > *size),
            src_ip: None,
        })
    }

    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.destination = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1452;

    #[test]
    fn full_transmits_join_until_there_is_no_room() {
        let mut batch = Batch::default();
        let bytes = vec![7; FULL * SIZE];
        let mut joined = 0;
        while joined == 0 || !batch.is_full() {
            let next = transmit(&bytes, Some(SIZE));
            assert!(Batch::pays(&next));
            assert!(joined == 0 || batch.takes(&next));
            batch.push(&next);
            joined += 1;
        }

        let whole = batch.transmit().expect("there is something");
        assert_eq!(joined, 4);
        assert_eq!(whole.contents.len(), 4 * FULL * SIZE);
        assert_eq!(whole.segment_size, Some(SIZE));
        assert!(!batch.takes(&transmit(&bytes, Some(SIZE))));
    }

    #[test]
    fn a_shorter_datagram_joins_and_none_joins_after_it() {
        let mut batch = Batch::default();
        let bytes = vec![7; FULL * SIZE];
        batch.push(&transmit(&bytes, Some(SIZE)));
        let last = transmit(&bytes[..SIZE + 1], Some(SIZE));
        assert!(!Batch::pays(&last));
        assert!(batch.takes(&last));
        assert!(batch.takes(&transmit(&bytes[..9], None)));

        batch.push(&last);

        assert!(!batch.takes(&transmit(&bytes[..1], None)));
        assert!(!batch.takes(&transmit(&bytes, Some(SIZE))));
    }

    #[test]
    fn another_size_address_or_ecn_does_not_join() {
        let mut batch = Batch::default();
        let bytes = vec![7; FULL * SIZE];
        batch.push(&transmit(&bytes, Some(SIZE)));

        let smaller = transmit(&bytes[..FULL * 1200], Some(1200));
        let larger = transmit(&bytes[..SIZE + 1], None);
        let elsewhere = Transmit {
            destination: ([127, 0, 0, 2], 1).into(),
            ..transmit(&bytes, Some(SIZE))
        };
        let marked = Transmit {
            ecn: Some(EcnCodepoint::Ce),
            ..transmit(&bytes, Some(SIZE))
        };
        for other in [smaller, larger, elsewhere, marked] {
            assert!(!batch.takes(&other), "{other:?}");
        }
    }

    #[test]
    fn jumbo_frames_are_not_waited_for() {
        let bytes = vec![7; FULL * 8952];

        assert!(!Batch::pays(&transmit(&bytes, Some(8952))));
    }

    #[test]
    fn a_cleared_batch_takes_anything_as_its_first() {
        let mut batch = Batch::default();
        let bytes = vec![7; FULL * SIZE];
        batch.push(&transmit(&bytes, Some(SIZE)));

        batch.clear();

        assert!(batch.transmit().is_none());
        batch.push(&transmit(&bytes[..FULL * 1200], Some(1200)));
        let whole = batch.transmit().expect("there is something");
        assert_eq!(whole.segment_size, Some(1200));
    }

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        }
    }
}

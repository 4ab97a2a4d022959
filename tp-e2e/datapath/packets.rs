//! The packets that a session writes to the TUN.

/// Addresses and ports of a packet without IP options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
}

impl Ends {
    pub(crate) fn of(packet: &[u8]) -> Self {
        let address = |at: usize| packet[at..at + 4].try_into().expect("four bytes");
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);

        Self {
            source: (address(12), port(20)),
            destination: (address(16), port(22)),
        }
    }

    pub(crate) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// A segment without data.
pub(crate) fn segment(ends: Ends, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&ends.source.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&ends.destination.1.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    with_checksum(&mut tcp, 16, ends, 6);

    ip(ends, 6, &tcp)
}

/// Sets a packet's source address.
pub(crate) fn set_source(packet: &mut [u8], source: [u8; 4]) {
    packet[12..16].copy_from_slice(&source);
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// "Destination unreachable" about a packet.
pub(crate) fn unreachable(about: &[u8], code: u8) -> Vec<u8> {
    let ends = Ends::of(about).reversed();
    let mut icmp = vec![3, code, 0, 0, 0, 0, 0, 0];
    icmp.extend_from_slice(&about[..28]);
    let sum = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    ip(ends, 1, &icmp)
}

pub(crate) fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("a datagram fits");
    let mut udp = Vec::new();
    udp.extend(ends.source.1.to_be_bytes());
    udp.extend(ends.destination.1.to_be_bytes());
    udp.extend(len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend_from_slice(payload);
    with_checksum(&mut udp, 6, ends, 17);

    ip(ends, 17, &udp)
}

fn ip(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).expect("a packet fits");
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(ends.source.0);
    packet.extend(ends.destination.0);
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);

    packet
}

fn with_checksum(segment: &mut [u8], at: usize, ends: Ends, protocol: u8) {
    let len = u16::try_from(segment.len()).expect("a segment fits");
    let mut pseudo = Vec::new();
    pseudo.extend(ends.source.0);
    pseudo.extend(ends.destination.0);
    pseudo.extend([0, protocol]);
    pseudo.extend(len.to_be_bytes());
    let sum = checksum(&[&pseudo, segment]);
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }

    !u16::try_from(sum).expect("folded above")
}

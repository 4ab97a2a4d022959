//! The packets we read from and write to the TUN. IPv4 only, without options.

use std::net::SocketAddrV4;

use bytes::Bytes;
use etherparse::{
    Icmpv4Type, IpNumber, Ipv4HeaderSlice, PacketBuilder, TcpHeaderSlice,
    icmpv4::DestUnreachableHeader,
};

use crate::verdict;

const TTL: u8 = 64;
/// Bytes of the payload that an ICMP error quotes beside the IP header (RFC 792).
const QUOTED: usize = 8;

/// A connection attempt as it left the application's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syn {
    /// The ends of the connection.
    pub flow: FlowKey,
    /// The sequence number, in host byte order.
    pub sequence: u32,
    /// The whole packet, to be written back.
    pub packet: Bytes,
}

/// Both ends of a connection on the veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// The application's end.
    pub source: SocketAddrV4,
    /// The alias that the application connects to.
    pub destination: SocketAddrV4,
}

/// The SYN in `packet`, a whole IPv4 packet; `None` for everything else: other protocols, fragments
/// (RFC 791), TCP segments without SYN or with ACK (RFC 9293 section 3.1), truncated headers.
pub fn parse_syn(packet: &[u8]) -> Option<Syn> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    if ip.protocol() != IpNumber::TCP || ip.is_fragmenting_payload() {
        return None;
    }
    let tcp = TcpHeaderSlice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    if !tcp.syn() || tcp.ack() {
        return None;
    }

    Some(Syn {
        flow: FlowKey {
            source: SocketAddrV4::new(ip.source_addr(), tcp.source_port()),
            destination: SocketAddrV4::new(ip.destination_addr(), tcp.destination_port()),
        },
        sequence: tcp.sequence_number(),
        packet: Bytes::copy_from_slice(packet),
    })
}

/// The RST that refuses `syn` (RFC 9293 section 3.10.7.1), as a whole IPv4 packet.
pub fn reset(syn: &Syn) -> Vec<u8> {
    let FlowKey {
        source,
        destination,
    } = syn.flow;
    let builder = PacketBuilder::ipv4(destination.ip().octets(), source.ip().octets(), TTL)
        .tcp(destination.port(), source.port(), 0, 0)
        .rst()
        .ack(syn.sequence.wrapping_add(1));

    written(builder.size(0), |packet| builder.write(packet, &[]).is_ok())
}

/// The ICMP error "destination unreachable" (RFC 792) that refuses `syn`, as a whole IPv4 packet. It
/// quotes the IP header and 8 bytes of `syn`. `code` is [`verdict::NET_UNREACHABLE`],
/// [`verdict::HOST_UNREACHABLE`] or [`verdict::PROHIBITED`]; any other counts as
/// [`verdict::HOST_UNREACHABLE`].
pub fn unreachable(syn: &Syn, code: u8) -> Vec<u8> {
    let reason = match code {
        verdict::NET_UNREACHABLE => DestUnreachableHeader::Network,
        verdict::PROHIBITED => DestUnreachableHeader::FilterProhibited,
        _ => DestUnreachableHeader::Host,
    };
    let header = usize::from(syn.packet.first().map_or(0, |first| first & 0x0f)) * 4;
    let quoted = &syn.packet[..syn.packet.len().min(header + QUOTED)];
    let FlowKey {
        source,
        destination,
    } = syn.flow;
    let builder = PacketBuilder::ipv4(destination.ip().octets(), source.ip().octets(), TTL)
        .icmpv4(Icmpv4Type::DestinationUnreachable(reason));

    written(builder.size(quoted.len()), |packet| {
        builder.write(packet, quoted).is_ok()
    })
}

/// A UDP datagram (RFC 768) as a whole IPv4 packet; `None` if `payload` is longer than 65507 bytes.
pub fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), TTL)
        .udp(source.port(), destination.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).ok()?;

    Some(packet)
}

/// The ICMP error "destination unreachable" with `code` about a datagram from `source`, as
/// `destination` or a router on the way there sends it, as a whole IPv4 packet. It quotes the headers
/// of the datagram. `None` for a code above 15 (RFC 792, RFC 1812 section 5.2.7.1); with code 4,
/// "fragmentation needed", the next hop's MTU is 0 (RFC 1191 section 4).
pub fn datagram_unreachable(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    code: u8,
) -> Option<Vec<u8>> {
    let reason = DestUnreachableHeader::from_values(code, 0)?;
    let refused = udp(source, destination, &[])?;
    let builder = PacketBuilder::ipv4(destination.ip().octets(), source.ip().octets(), TTL)
        .icmpv4(Icmpv4Type::DestinationUnreachable(reason));

    Some(written(builder.size(refused.len()), |packet| {
        builder.write(packet, &refused).is_ok()
    }))
}

fn written(size: usize, write: impl FnOnce(&mut Vec<u8>) -> bool) -> Vec<u8> {
    let mut packet = Vec::with_capacity(size);
    let fits = write(&mut packet);
    debug_assert!(fits, "headers and a quoted header fit every IPv4 packet");

    packet
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    /// A SYN as it leaves an application's kernel.
    pub(crate) fn syn_packet(
        source: SocketAddrV4,
        destination: SocketAddrV4,
        sequence: u32,
    ) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), TTL)
            .tcp(source.port(), destination.port(), sequence, 64_240)
            .syn();

        written(builder.size(0), |packet| builder.write(packet, &[]).is_ok())
    }

    fn syn() -> Syn {
        let packet = syn_packet(at("198.19.255.1:40000"), at("198.18.1.2:80"), u32::MAX);
        parse_syn(&packet).unwrap()
    }

    #[test]
    fn a_syn_is_read() {
        let syn = syn();

        assert_eq!(syn.flow.source, at("198.19.255.1:40000"));
        assert_eq!(syn.flow.destination, at("198.18.1.2:80"));
        assert_eq!(syn.sequence, u32::MAX);
    }

    #[test]
    fn an_unreachable_datagram_is_quoted() {
        let (source, destination) = (at("198.19.255.1:40000"), at("198.18.1.2:53"));

        for code in [
            verdict::PORT_UNREACHABLE,
            verdict::NET_UNKNOWN,
            verdict::HOST_UNREACHABLE,
            verdict::PROHIBITED,
        ] {
            let packet = datagram_unreachable(source, destination, code).unwrap();

            let parsed = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Icmpv4(icmp)) = parsed.transport else {
                panic!("not ICMP");
            };
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, code));
            assert_eq!(icmp.payload(), udp(source, destination, &[]).unwrap());
        }
    }

    #[test]
    fn other_packets_are_no_syn() {
        assert_eq!(parse_syn(&reset(&syn())), None);
        assert_eq!(
            parse_syn(&udp(at("1.1.1.1:1"), at("1.1.1.2:2"), b"x").unwrap()),
            None
        );
        for length in 0..40 {
            assert_eq!(parse_syn(&syn().packet[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_reset_acknowledges_the_syn() {
        let packet = reset(&syn());
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("no TCP")
        };

        assert!(tcp.rst() && tcp.ack());
        assert_eq!(tcp.acknowledgment_number(), 0);
        assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40000));
    }

    #[test]
    fn an_icmp_error_quotes_the_syn() {
        for code in [
            verdict::NET_UNREACHABLE,
            verdict::HOST_UNREACHABLE,
            verdict::PROHIBITED,
        ] {
            let syn = syn();
            let packet = unreachable(&syn, code);
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
                panic!("no IPv4")
            };

            assert_eq!(ip.header().destination_addr(), *syn.flow.source.ip());
            assert_eq!((packet[20], packet[21]), (3, code));
            assert_eq!(packet[28..], syn.packet[..28]);
        }
    }

    #[test]
    fn a_payload_that_fits_no_packet_is_refused() {
        assert!(udp(at("1.1.1.1:1"), at("1.1.1.2:2"), &[0; 65_508]).is_none());
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }
}

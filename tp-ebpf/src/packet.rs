//! The headers that decide on a packet, copied out of it.

use aya_ebpf::programs::TcContext;
use tp_ebpf_common::Counter;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const ETHERTYPE_IPV4: u16 = 0x0800;
/// First byte of an IPv4 packet without options.
const VERSION_AND_LENGTH: u8 = 0x45;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// One direction of a flow, as the kernel's socket lookup takes it.
#[repr(C)]
pub(crate) struct Flow {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// An IPv4 packet without options.
pub(crate) struct Packet<'a> {
    ctx: &'a TcContext,
    start: usize,
    pub(crate) protocol: u8,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    is_fragment: bool,
}

impl<'a> Packet<'a> {
    /// Reads a packet of an Ethernet device; `None` if it is not IPv4.
    #[inline(always)]
    pub(crate) fn from_ethernet(ctx: &'a TcContext) -> Result<Option<Self>, Counter> {
        let ethertype: [u8; 2] = ctx.load(12).map_err(|_| Counter::Malformed)?;
        if u16::from_be_bytes(ethertype) != ETHERTYPE_IPV4 {
            return Ok(None);
        }

        Self::read(ctx, ETHERNET_HEADER).map(Some)
    }

    /// Reads a packet of a device without link headers.
    #[inline(always)]
    pub(crate) fn from_ip(ctx: &'a TcContext) -> Result<Self, Counter> {
        Self::read(ctx, 0)
    }

    /// Reads a packet that comes out of the private namespace: over the veth with a link header,
    /// which begins with an address of ours, or straight from the TUN without one.
    #[inline(always)]
    pub(crate) fn from_either(ctx: &'a TcContext) -> Result<Self, Counter> {
        let first: u8 = ctx.load(0).map_err(|_| Counter::Malformed)?;
        if first == VERSION_AND_LENGTH {
            return Self::from_ip(ctx);
        }

        Self::from_ethernet(ctx)?.ok_or(Counter::UnexpectedPacket)
    }

    #[inline(always)]
    fn read(ctx: &'a TcContext, start: usize) -> Result<Self, Counter> {
        let h: [u8; IPV4_HEADER] = ctx.load(start).map_err(|_| Counter::Malformed)?;
        if h[0] != VERSION_AND_LENGTH {
            return Err(Counter::Malformed);
        }

        Ok(Self {
            ctx,
            start,
            protocol: h[9],
            source: [h[12], h[13], h[14], h[15]],
            destination: [h[16], h[17], h[18], h[19]],
            is_fragment: (h[6] & 0x3f) != 0 || h[7] != 0,
        })
    }

    #[inline(always)]
    pub(crate) fn tcp_flags(&self) -> Result<TcpFlags, Counter> {
        if self.is_fragment {
            return Err(Counter::Malformed);
        }

        self.load(13).map(TcpFlags)
    }

    /// True for "destination unreachable" about a packet between the same two addresses: one about
    /// another connection could end or slow what does not belong to the session.
    #[inline(always)]
    pub(crate) fn is_own_unreachable(&self) -> Result<bool, Counter> {
        let head: [u8; ICMP_HEADER] = self.load(0)?;
        let inner: [u8; IPV4_HEADER] = self.load(ICMP_HEADER)?;
        let protocol = inner[9];

        Ok(!self.is_fragment
            && head[0] == DESTINATION_UNREACHABLE
            && head[1] != FRAGMENTATION_NEEDED
            && inner[0] == VERSION_AND_LENGTH
            && (protocol == TCP || protocol == UDP)
            && [inner[12], inner[13], inner[14], inner[15]] == self.destination
            && [inner[16], inner[17], inner[18], inner[19]] == self.source)
    }

    /// The flow of a packet of TCP or UDP.
    #[inline(always)]
    pub(crate) fn flow(&self) -> Result<Flow, Counter> {
        if self.is_fragment {
            return Err(Counter::Malformed);
        }
        let ports: [u8; 4] = self.load(0)?;

        Ok(Flow {
            source: self.source,
            destination: self.destination,
            source_port: [ports[0], ports[1]],
            destination_port: [ports[2], ports[3]],
        })
    }

    /// For an [own unreachable](Self::is_own_unreachable): the protocol of the packet that was refused,
    /// and the flow of its answers.
    #[inline(always)]
    pub(crate) fn refused_flow(&self) -> Result<(u8, Flow), Counter> {
        let protocol: u8 = self.load(ICMP_HEADER + 9)?;
        let ports: [u8; 4] = self.load(ICMP_HEADER + IPV4_HEADER)?;
        let flow = Flow {
            source: self.source,
            destination: self.destination,
            source_port: [ports[2], ports[3]],
            destination_port: [ports[0], ports[1]],
        };

        Ok((protocol, flow))
    }

    #[inline(always)]
    fn load<T>(&self, offset: usize) -> Result<T, Counter> {
        self.ctx
            .load(self.start + IPV4_HEADER + offset)
            .map_err(|_| Counter::Malformed)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct TcpFlags(u8);

impl TcpFlags {
    /// The first packet of a connection.
    #[inline(always)]
    pub(crate) fn opens(self) -> bool {
        self.0 & (SYN | ACK) == SYN
    }

    /// The answer that accepts a connection.
    #[inline(always)]
    pub(crate) fn accepts(self) -> bool {
        self.0 & (SYN | ACK) == SYN | ACK
    }

    #[inline(always)]
    pub(crate) fn resets(self) -> bool {
        self.0 & (SYN | RST | FIN) == RST
    }

    /// SYN together with FIN or RST: no stack sends it.
    #[inline(always)]
    pub(crate) fn is_absurd(self) -> bool {
        self.0 & SYN != 0 && self.0 & (FIN | RST) != 0
    }
}

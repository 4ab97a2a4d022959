//! How QUIC is set up, the same on both ends.

use std::{net::Ipv6Addr, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::{PathAwareFactory, PathEpoch};

/// Largest datagram on either path: an Ethernet frame less the headers of IPv6, UDP and a
/// tunnel around them.
pub(crate) const FULL_SIZE: u16 = 1452;
/// What every path must carry.
pub(crate) const BASE_SIZE: u16 = 1200;

const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const SEND_WINDOW: u64 = 16 << 20;
/// Flows that may be open at once; beyond it a dial waits.
const MAX_FLOWS: u32 = 100_000;
/// Room for the welcome.
const MAX_UNI_STREAMS: u32 = 1;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The address that the client's QUIC sees, whatever the path.
pub(crate) const LOGICAL_SERVER: SocketAddr = link_address(0);
/// Name in the client's hello; the pinned key is what counts.
pub(crate) const SERVER_NAME: &str = "manager.tp.internal";
pub(crate) const ALPN: &[u8] = b"tp/1";

/// The address that stands for a byte stream: `fd00:74:70::/48` is ours by definition, no packet
/// with it ever leaves the process.
pub(crate) const fn link_address(id: u64) -> SocketAddr {
    let [a, b, c, d] = [
        (id >> 48) as u16,
        (id >> 32) as u16,
        (id >> 16) as u16,
        id as u16,
    ];
    let ip = Ipv6Addr::new(0xfd00, 0x74, 0x70, 0, a, b, c, d);

    SocketAddr::new(std::net::IpAddr::V6(ip), 1)
}

pub(crate) fn is_link_address(address: &SocketAddr) -> bool {
    matches!(address.ip(), std::net::IpAddr::V6(ip) if ip.segments()[..4] == [0xfd00, 0x74, 0x70, 0])
}

/// Settings of one connection, whose controller follows `epoch`.
pub(crate) fn transport_config(epoch: &Arc<PathEpoch>) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(FULL_SIZE);

    let mut config = TransportConfig::default();
    config
        .initial_mtu(BASE_SIZE)
        .min_mtu(BASE_SIZE)
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_FLOWS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("a day fits"),
        ))
        .congestion_controller_factory(Arc::new(PathAwareFactory::new(Arc::clone(epoch))));

    Arc::new(config)
}

/// Settings of an endpoint. The fixed bit stays set, because its absence marks a probe.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(FULL_SIZE)
        .expect("more than the least that QUIC allows");
    config.grease_quic_bit(false);

    config
}

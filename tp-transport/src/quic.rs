//! The QUIC settings of both ends.

use std::{net::Ipv6Addr, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use tp_core::{
    credit::Limits,
    path::{BASE_SIZE, FULL_SIZE, PathChoice},
};

use crate::congestion::{PathAwareFactory, PathEpoch};

/// Largest datagram on a path that proves to carry it: a byte stream, or jumbo frames. It saves a
/// third of the processor time.
const LARGEST_SIZE: u16 = 8952;

/// QUIC's limits on unread bytes, of one flow and of all together. Flows with credit stay below both:
/// see [`Limits`].
struct Windows {
    stream: u32,
    connection: u32,
}

const CLIENT_WINDOWS: Windows = Windows {
    stream: 16 << 20,
    connection: 512 << 20,
};
/// A manager has many sessions.
const SERVER_WINDOWS: Windows = Windows {
    stream: 8 << 20,
    connection: 168 << 20,
};
/// A client's buffers for its session's flows: 256 MiB.
pub(crate) const CLIENT_CREDIT: Limits = Limits {
    flows: MAX_FLOWS as u64,
    floor: 16 << 10,
    start: 256 << 10,
    window: 14 << 20,
    shared: 176 << 20,
    starts: 48 << 20,
};
/// A manager's buffers for the flows of one session: 128 MiB.
pub(crate) const SERVER_CREDIT: Limits = Limits {
    flows: MAX_FLOWS as u64,
    floor: 8 << 10,
    start: 256 << 10,
    window: 7 << 20,
    shared: 88 << 20,
    starts: 24 << 20,
};
/// Part of the connection's window that is reserved for control streams and the beginnings of flows.
const RESERVE: u64 = 16 << 20;
const _: () = assert!(fits(&CLIENT_CREDIT, &CLIENT_WINDOWS));
const _: () = assert!(fits(&SERVER_CREDIT, &SERVER_WINDOWS));

/// Returns whether credit is the narrower bound. quinn announces a window only when an eighth of it
/// is free again.
const fn fits(credit: &Limits, windows: &Windows) -> bool {
    credit.window <= windows.stream as u64 / 8 * 7
        && credit.budget() + RESERVE <= windows.connection as u64 / 8 * 7
}

/// Bytes that a peer may send before it is admitted: anybody who knows the name of a session can
/// complete the handshake. quinn keeps received bytes for a while even after a close.
const UNADMITTED_WINDOW: u32 = 16 << 10;
const SEND_WINDOW: u64 = 16 << 20;
/// Streams that may be open at once; beyond it a dial waits. A manager refuses flows below that, with
/// a reason.
const MAX_FLOWS: u32 = 5120;
/// The same for a connection with few flows: from the beginning quinn keeps an entry in each of two
/// hash maps for every stream that may be opened (quinn-proto 0.11, `connection/streams/state.rs`).
/// So many fit into the smallest maps that hold half as many.
const FIRST_FLOWS: u32 = 48;
/// The same for what a manager opens: connections that were intercepted, which most sessions have none of.
const FIRST_INTERCEPTED: u32 = 16;
/// The welcome, and the stream of credit.
const MAX_UNI_STREAMS: u32 = 2;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The address of the server that the client's QUIC sees on any path.
pub(crate) const LOGICAL_SERVER: SocketAddr = link_address(0);
/// Name in the client's hello; only the pinned key counts.
pub(crate) const SERVER_NAME: &str = "manager.tp.internal";
pub(crate) const ALPN: &[u8] = b"tp/1";

/// The address that stands for a byte stream: `fd00:74:70::/48` cannot collide, because no packet
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

/// Settings of a client's connection, whose controller follows `epoch`. A client's path keeps its
/// datagram size when it moves, so where it may move to UDP the stream must not enlarge it.
pub(crate) fn client_transport(epoch: &Arc<PathEpoch>, choice: PathChoice) -> Arc<TransportConfig> {
    let largest = match choice {
        PathChoice::StreamOnly => LARGEST_SIZE,
        PathChoice::Auto | PathChoice::UdpOnly => FULL_SIZE,
    };

    let mut config = transport(epoch, largest, &CLIENT_WINDOWS);
    config.max_concurrent_bidi_streams(VarInt::from_u32(FIRST_INTERCEPTED));

    Arc::new(config)
}

/// Settings of a server's connection, whose controller restarts on every path that its client moves
/// to. Until [`admit`] the peer has no stream for flows, and a small window.
pub(crate) fn server_transport(epoch: &Arc<PathEpoch>) -> Arc<TransportConfig> {
    let mut config = transport(epoch, LARGEST_SIZE, &SERVER_WINDOWS);
    config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.receive_window(VarInt::from_u32(UNADMITTED_WINDOW));

    Arc::new(config)
}

/// Gives the peer of a server's connection the limits of an admitted session.
pub(crate) fn admit(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(SERVER_WINDOWS.connection));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(FIRST_FLOWS));
}

/// Raises the limit of the flows that the other end opens while more than half of it is in use.
#[derive(Debug)]
pub(crate) struct FlowLimit(u32);

impl FlowLimit {
    /// Of what a session opens.
    pub(crate) fn of_server() -> Self {
        Self(FIRST_FLOWS)
    }

    /// Of what a manager opens.
    pub(crate) fn of_client() -> Self {
        Self(FIRST_INTERCEPTED)
    }

    pub(crate) fn follow(&mut self, connection: &Connection, flows: usize) {
        let flows = u32::try_from(flows).unwrap_or(u32::MAX);
        if flows > self.0 / 2 && self.0 < MAX_FLOWS {
            self.0 = self.0.saturating_mul(2).min(MAX_FLOWS);
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.0));
        }
    }
}

fn transport(epoch: &Arc<PathEpoch>, largest: u16, windows: &Windows) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest);

    let mut config = TransportConfig::default();
    config
        .initial_mtu(BASE_SIZE)
        .min_mtu(BASE_SIZE)
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(windows.stream))
        .receive_window(VarInt::from_u32(windows.connection))
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("a day fits"),
        ))
        .congestion_controller_factory(Arc::new(PathAwareFactory::new(Arc::clone(epoch))));

    config
}

/// Settings of an endpoint. The fixed bit stays set, because its absence marks a probe.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(LARGEST_SIZE)
        .expect("more than the least that QUIC allows");
    config.grease_quic_bit(false);

    config
}

/// Segments of [`LARGEST_SIZE`] that hold the most that the kernel hands over at once. QUIC makes
/// its receive buffers of this size.
pub(crate) const RECEIVE_SEGMENTS: usize = (64 << 10) / LARGEST_SIZE as usize + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_next_to_no_room_before_it_is_admitted() {
        let config = format!("{:?}", server_transport(&Arc::default()));

        for room in ["receive_window: 16384,", "max_concurrent_bidi_streams: 0,"] {
            assert!(config.contains(&format!(" {room}")), "{room} {config}");
        }
    }
}

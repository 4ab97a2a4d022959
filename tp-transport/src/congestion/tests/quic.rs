//! A connection of quinn-proto as it is, both ends, in virtual time: its pacer, its loss detection
//! and its acknowledgements are what the controller meets in life.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, MtuDiscoveryConfig, ServerConfig, StreamEvent, StreamId, Transmit, TransportConfig,
    VarInt,
};
use tp_core::path::{BASE_SIZE, FULL_SIZE};

use super::{
    sim::{Factory, Flow},
    wire::{Data, HEADERS, Packet},
};
use crate::{
    keys::{Identity, SessionRef},
    quic::SERVER_NAME,
    tls::{client_config, server_config},
};

/// As many as quinn asks for at once.
const SEGMENTS: usize = 10;
const BLOCK: [u8; 16 << 10] = [7; 16 << 10];
/// Bytes that a reader leaves unread by default.
const UNREAD: u32 = 8 << 20;
const TICK: Duration = Duration::from_millis(1);

/// The application's data to send.
#[derive(Debug, Clone, Copy)]
pub(super) enum Demand {
    Endless,
    /// So many bytes at the beginning of every period.
    Periodic {
        bytes: u64,
        period: Duration,
    },
    From(Duration),
    /// Until the first moment, and again from the second.
    TwoBursts(Duration, Duration),
    /// Without an end, to a reader that leaves no more than so many bytes unread.
    Within(u32),
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    to_far_end: bool,
}

pub(super) struct Quic {
    flow: usize,
    start: Instant,
    near: End,
    far: End,
    demand: Demand,
    stream: Option<StreamId>,
    written: u64,
    is_blocked: bool,
    /// Why the connection is gone.
    lost: Option<String>,
    /// When the application is asked again; the first wake-up sends the handshake.
    next_tick: Instant,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn transport(factory: Factory, unread: u32) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(FULL_SIZE);
    let mut config = TransportConfig::default();
    config
        .initial_mtu(BASE_SIZE)
        .min_mtu(BASE_SIZE)
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(unread))
        .receive_window(VarInt::from_u32(128 << 20))
        .send_window(16 << 20)
        .congestion_controller_factory(factory);

    Arc::new(config)
}

impl Quic {
    pub(super) fn new(flow: usize, start: Instant, factory: Factory, demand: Demand) -> Self {
        let session = SessionRef {
            namespace: "shop".into(),
            name: "alice".into(),
            uid: "6f1c7b0a-0000-4000-8000-000000000001".into(),
        };
        let (alice, manager) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let (crypto, _) = client_config(&alice, &session, manager.key_hash()).unwrap();
        let tls = server_config(&manager).unwrap();
        let mut server = ServerConfig::with_crypto(Arc::new(tls));
        let unread = match demand {
            Demand::Within(bytes) => bytes,
            _ => UNREAD,
        };
        server.transport_config(transport(Arc::clone(&factory), unread));
        let mut client = ClientConfig::new(Arc::new(crypto));
        client.transport_config(transport(factory, unread));

        let config = Arc::new(EndpointConfig::default());
        let seed = Some([flow as u8; 32]);
        let mut near = Endpoint::new(Arc::clone(&config), None, true, seed);
        let far = Endpoint::new(config, Some(Arc::new(server)), true, seed);
        let connected = near.connect(start, client, address(2), SERVER_NAME);

        Self {
            flow,
            start,
            near: End {
                endpoint: near,
                connection: Some(connected.unwrap()),
                to_far_end: true,
            },
            far: End {
                endpoint: far,
                connection: None,
                to_far_end: false,
            },
            demand,
            stream: None,
            written: 0,
            is_blocked: false,
            lost: None,
            next_tick: start,
        }
    }

    fn turn(&mut self, now: Instant, out: &mut Vec<Packet>) {
        self.near.events(|connection, event| match event {
            Event::Connected => self.stream = connection.streams().open(Dir::Uni),
            Event::Stream(StreamEvent::Writable { .. }) => self.is_blocked = false,
            Event::ConnectionLost { reason } => self.lost = Some(reason.to_string()),
            _ => {}
        });
        self.write(now);
        self.near.transmit(now, self.flow, out);
        self.far.events(|connection, event| match event {
            Event::Stream(StreamEvent::Readable { id }) => read(connection, id),
            Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                while let Some(id) = connection.streams().accept(Dir::Uni) {
                    read(connection, id);
                }
            }
            Event::ConnectionLost { reason } => self.lost = Some(reason.to_string()),
            _ => {}
        });
        self.far.transmit(now, self.flow, out);
    }

    fn write(&mut self, now: Instant) {
        let (Some(id), Some((_, connection))) = (self.stream, &mut self.near.connection) else {
            return;
        };
        let elapsed = now - self.start;
        let allowed = match self.demand {
            Demand::Endless | Demand::Within(_) => u64::MAX,
            Demand::Periodic { bytes, period } => {
                let periods = elapsed.as_nanos() / period.as_nanos() + 1;
                bytes * periods as u64
            }
            Demand::From(from) if elapsed < from => 0,
            Demand::TwoBursts(end, again) if elapsed >= end && elapsed < again => self.written,
            Demand::From(_) | Demand::TwoBursts(..) => u64::MAX,
        };
        while !self.is_blocked && self.lost.is_none() && self.written < allowed {
            let length = BLOCK.len().min((allowed - self.written) as usize);
            match connection.send_stream(id).write(&BLOCK[..length]) {
                Ok(written) => self.written += written as u64,
                Err(_) => self.is_blocked = true,
            }
        }
    }
}

fn read(connection: &mut Connection, id: StreamId) {
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(true) else {
        return;
    };
    while let Ok(Some(_)) = chunks.next(usize::MAX) {}
    let _ = chunks.finalize();
}

impl End {
    fn events(&mut self, mut on_event: impl FnMut(&mut Connection, Event)) {
        let Some((_, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll() {
            on_event(connection, event);
        }
    }

    fn receive(&mut self, now: Instant, datagram: &[u8]) {
        let from = address(if self.to_far_end { 2 } else { 1 });
        let mut answer = Vec::new();
        let data = BytesMut::from(datagram);
        match self
            .endpoint
            .handle(now, from, None, None, data, &mut answer)
        {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                let (_, connection) = self.connection.as_mut().unwrap();
                connection.handle_event(event);
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.endpoint.accept(incoming, now, &mut answer, None);
                self.connection = Some(accepted.unwrap_or_else(|error| panic!("{}", error.cause)));
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn transmit(&mut self, now: Instant, flow: usize, out: &mut Vec<Packet>) {
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, SEGMENTS, &mut buffer) {
            let Transmit {
                size, segment_size, ..
            } = transmit;
            for segment in buffer[..size].chunks(segment_size.unwrap_or(size)) {
                out.push(Packet {
                    flow,
                    to_far_end: self.to_far_end,
                    size: segment.len() + HEADERS,
                    data: Data::Quic(segment.to_vec()),
                });
            }
            buffer.clear();
        }
    }

    fn timeout(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }

    fn expire(&mut self, now: Instant) {
        if self.timeout().is_some_and(|timeout| timeout <= now) {
            self.connection.as_mut().unwrap().1.handle_timeout(now);
        }
    }
}

impl Flow for Quic {
    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn arrive(&mut self, now: Instant, packets: Vec<Packet>, out: &mut Vec<Packet>) {
        for packet in packets {
            let Data::Quic(datagram) = packet.data else {
                unreachable!("a datagram of QUIC");
            };
            match packet.to_far_end {
                true => self.far.receive(now, &datagram),
                false => self.near.receive(now, &datagram),
            }
        }
        self.turn(now, out);
    }

    fn wake(&mut self, now: Instant, out: &mut Vec<Packet>) {
        self.near.expire(now);
        self.far.expire(now);
        self.turn(now, out);
        self.next_tick = now + TICK;
    }

    fn timeout(&mut self) -> Option<Instant> {
        let is_asked = self.next_tick == self.start || !matches!(self.demand, Demand::Endless);
        let tick = is_asked.then_some(self.next_tick);
        let timeouts = [self.near.timeout(), self.far.timeout(), tick];

        timeouts.into_iter().flatten().min()
    }
}

//! Queries of the session's user to the machine's own name servers: answered, asked in the
//! cluster, or passed on as they are.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tp_core::{
    dns::{self, Decision, Limit, Question},
    packet,
};
use tp_proto::tunnel::ResolveRequest;

use super::{
    relay::{Aliases, Tun},
    shared::Shared,
    sys::{self, Heartbeat},
};

use pass_on::Reply;

mod pass_on;
pub(super) mod servers;

/// Queries under way; a further one is lost, and its resolver asks again.
const MAX_QUERIES: usize = 1024;
/// The hooks let port 53 pass when no beat came for 2 s.
const BEAT: Duration = Duration::from_millis(250);
/// The manager gives the cluster's server 3 s; a resolver asks again after 5 s.
const CLUSTER_LIMIT: Duration = Duration::from_secs(4);
/// An idle TCP connection of a resolver (RFC 7766 section 6.2.3).
const STREAM_IDLE: Duration = Duration::from_secs(30);
const MAX_MESSAGE: usize = 65_535;

pub(super) struct Dns {
    pub(super) shared: Arc<Shared>,
    pub(super) aliases: Aliases,
    pub(super) tun: Tun,
    room: Arc<Semaphore>,
}

struct Datagram {
    source: SocketAddrV4,
    alias: SocketAddrV4,
    payload: Vec<u8>,
}

impl Dns {
    pub(super) fn new(shared: Arc<Shared>, aliases: Aliases, tun: Tun) -> Arc<Self> {
        Arc::new(Self {
            shared,
            aliases,
            tun,
            room: Arc::new(Semaphore::new(MAX_QUERIES)),
        })
    }

    pub(super) fn is_name_server(&self, address: SocketAddrV4) -> bool {
        self.shared.name_servers.borrow().contains(&address)
    }

    /// Answers datagrams, and says that it is alive: a session that hangs here loses port 53.
    pub(super) async fn serve(
        self: Arc<Self>,
        socket: UdpSocket,
        heartbeat: Heartbeat,
    ) -> io::Result<()> {
        let socket = sys::watched(socket)?;
        let mut queries = JoinSet::new();
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => heartbeat.beat(),
                Some(_) = queries.join_next() => {}
                datagram = receive(&socket) => {
                    let Some(datagram) = datagram? else { continue };
                    let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
                        count(&self.shared.counters.failed);
                        continue;
                    };
                    let this = Arc::clone(&self);
                    queries.spawn(async move {
                        this.datagram(datagram).await;
                        drop(room);
                    });
                }
            }
        }
    }

    async fn datagram(&self, datagram: Datagram) {
        let Some(server) = self.aliases.real(datagram.alias) else {
            return;
        };
        if !self.is_name_server(server) {
            return;
        }
        let reply = self
            .answer(&datagram.payload, server, Limit::Datagram)
            .await;
        let packet = match reply {
            Reply::Message(reply) => packet::udp(datagram.alias, datagram.source, &reply),
            // The resolver goes on to its next server at once.
            Reply::Refused => Some(packet::port_unreachable(datagram.source, datagram.alias)),
            Reply::Silence => None,
        };
        match packet {
            Some(packet) => self.tun.write(&packet),
            None => count(&self.shared.counters.failed),
        }
    }

    /// One connection of a resolver: messages with their length before them (RFC 1035 section
    /// 4.2.2), answered in turn.
    pub(super) async fn serve_stream(&self, mut stream: TcpStream, server: SocketAddrV4) {
        loop {
            let Ok(Ok(length)) = timeout(STREAM_IDLE, stream.read_u16()).await else {
                return;
            };
            let mut query = vec![0; usize::from(length)];
            let Ok(Ok(_)) = timeout(STREAM_IDLE, stream.read_exact(&mut query)).await else {
                return;
            };
            let Reply::Message(reply) = self.answer(&query, server, Limit::Stream).await else {
                count(&self.shared.counters.failed);
                return;
            };
            let Ok(length) = u16::try_from(reply.len()) else {
                return;
            };
            let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
            let Ok(Ok(())) = timeout(STREAM_IDLE, stream.write_all(&framed)).await else {
                return;
            };
        }
    }

    async fn answer(&self, query: &[u8], server: SocketAddrV4, limit: Limit) -> Reply {
        let counters = &self.shared.counters;
        match self.shared.zone(|zone| dns::decide(query, zone, limit)) {
            Decision::PassOn => self.pass_on(query, server, limit).await,
            Decision::Answer(_) if self.shared.up().is_none() => {
                count(&counters.failed);
                message(dns::unreachable_cluster(query, limit))
            }
            Decision::Answer(answer) => {
                count(&counters.answered);
                Reply::Message(answer)
            }
            Decision::AskCluster(question) => {
                count(&counters.asked);
                self.ask_cluster(query, &question, server, limit).await
            }
        }
    }

    async fn ask_cluster(
        &self,
        query: &[u8],
        question: &Question,
        server: SocketAddrV4,
        limit: Limit,
    ) -> Reply {
        let Some(mut up) = self.shared.up() else {
            return self.unasked(query, question, server, limit).await;
        };
        let request = ResolveRequest {
            query: question.message.clone().into(),
        };
        let response = match timeout(CLUSTER_LIMIT, up.manager.resolve(request)).await {
            Ok(Ok(response)) => response.into_inner().response,
            Ok(Err(status)) => {
                tracing::debug!(reason = status.message(), "Cluster did not resolve");
                return self.unasked(query, question, server, limit).await;
            }
            Err(_) => return self.unasked(query, question, server, limit).await,
        };
        if !response.is_empty() {
            return message(dns::rewritten(query, question, &response, limit));
        }
        let missing = self
            .shared
            .zone(|zone| dns::not_in_cluster(query, question, zone, limit));
        match missing {
            Some(missing) => Reply::Message(missing),
            None => self.pass_on(query, server, limit).await,
        }
    }

    /// The cluster cannot be asked. A name that it may not even have must not fail for that.
    async fn unasked(
        &self,
        query: &[u8],
        question: &Question,
        server: SocketAddrV4,
        limit: Limit,
    ) -> Reply {
        if question.is_ours {
            count(&self.shared.counters.failed);
            return message(dns::unreachable_cluster(query, limit));
        }

        self.pass_on(query, server, limit).await
    }

    async fn pass_on(&self, query: &[u8], server: SocketAddrV4, limit: Limit) -> Reply {
        count(&self.shared.counters.passed_on);
        pass_on::ask(server, query, limit).await
    }
}

fn message(message: Option<Vec<u8>>) -> Reply {
    message.map_or(Reply::Silence, Reply::Message)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The next datagram with the alias that it was sent to; `None` for one without.
async fn receive(socket: &AsyncFd<UdpSocket>) -> io::Result<Option<Datagram>> {
    loop {
        let mut guard = socket.readable().await?;
        if let Ok(result) = guard.try_io(|socket| receive_now(socket.get_ref())) {
            return result;
        }
    }
}

fn receive_now(socket: &UdpSocket) -> io::Result<Option<Datagram>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!(libc::sockaddr_in);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let length = message.bytes;
    let source = message
        .address
        .map(|source| SocketAddrV4::new(source.ip(), source.port()));
    let alias = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => {
            let address = SockaddrIn::from(address);
            Some(SocketAddrV4::new(address.ip(), address.port()))
        }
        _ => None,
    });
    buffer.truncate(length);

    Ok(source.zip(alias).map(|(source, alias)| Datagram {
        source,
        alias,
        payload: buffer,
    }))
}

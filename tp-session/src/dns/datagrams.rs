//! Queries over UDP.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg};
use tokio::{
    io::unix::AsyncFd,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tp_core::{
    dns::{self, Limit, Question},
    packet,
};

use super::{
    Dns, Fate, count,
    newest::Newest,
    pass_on::{self, Reply},
};
use crate::{
    relay::{Aliases, Tun},
    sys::{self, BEAT, Heartbeat, INPUT_OR_ERROR, Part},
};

/// Queries passed on that no server has answered yet. One more makes the oldest forgotten: a
/// server that is silent must not keep from a server that is not.
const MAX_PASSED_ON: usize = 1024;
const MAX_MESSAGE: usize = 65_535;

pub(crate) struct Datagrams {
    pub(crate) dns: Arc<Dns>,
    pub(crate) aliases: Aliases,
    pub(crate) tun: Tun,
}

/// Who asked, and whom.
#[derive(Clone, Copy)]
struct Ends {
    source: SocketAddrV4,
    alias: SocketAddrV4,
    server: SocketAddrV4,
}

/// A query that the cluster was asked about.
struct Asked {
    ends: Ends,
    query: Vec<u8>,
    fate: Fate,
}

/// Queries that wait for somebody, each kind in a room of its own: what waits for a server of the
/// machine never keeps from a name of the cluster, nor the reverse.
struct Waiting {
    asked: JoinSet<Asked>,
    passed_on: Newest,
}

impl Datagrams {
    /// Answers datagrams, and says that it is alive: a session that hangs here, or in the relay, loses
    /// port 53.
    pub(crate) async fn serve(
        self: Arc<Self>,
        socket: UdpSocket,
        heartbeat: Arc<Heartbeat>,
    ) -> io::Result<()> {
        let socket = sys::watched(socket)?;
        let mut waiting = Waiting {
            asked: JoinSet::new(),
            passed_on: Newest::new(MAX_PASSED_ON),
        };
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            tokio::select! {
                _ = beat.tick() => heartbeat.beat(Part::Dns),
                Some(()) = waiting.passed_on.join_next() => {}
                Some(asked) = waiting.asked.join_next() => {
                    match asked {
                        Ok(Asked { ends, query, fate }) => {
                            self.settle(ends, &query, fate, &mut waiting);
                        }
                        // The resolver asks again.
                        Err(error) => tracing::error!(%error, "Query lost"),
                    }
                }
                received = receive(&socket, &mut buffer) => {
                    let Some((length, source, alias)) = received? else { continue };
                    let Some(server) = self.aliases.real(alias) else { continue };
                    if !self.dns.is_name_server(server) {
                        continue;
                    }
                    let ends = Ends { source, alias, server };
                    let query = &buffer[..length];
                    let fate = self.dns.decide(query, Limit::Datagram);
                    self.settle(ends, query, fate, &mut waiting);
                }
            }
        }
    }

    fn settle(self: &Arc<Self>, ends: Ends, query: &[u8], fate: Fate, waiting: &mut Waiting) {
        match fate {
            Fate::Answer(answer) => {
                self.dns.note_truncated(ends.server, &answer);
                self.answer(ends, &answer);
            }
            Fate::Ask(question) => self.ask(ends, query.to_vec(), question, waiting),
            Fate::PassOn => self.pass_on(ends, query.to_vec(), waiting),
            Fate::Lost => count(&self.dns.shared.counters.failed),
        }
    }

    fn ask(
        self: &Arc<Self>,
        ends: Ends,
        query: Vec<u8>,
        question: Question,
        waiting: &mut Waiting,
    ) {
        let Ok(room) = Arc::clone(&self.dns.asking).try_acquire_owned() else {
            count(&self.dns.shared.counters.failed);
            return;
        };
        let this = Arc::clone(self);
        waiting.asked.spawn(async move {
            let fate = this
                .dns
                .ask_cluster(&query, &question, Limit::Datagram)
                .await;
            drop(room);
            Asked { ends, query, fate }
        });
    }

    fn pass_on(self: &Arc<Self>, ends: Ends, query: Vec<u8>, waiting: &mut Waiting) {
        let counters = &self.dns.shared.counters;
        count(&counters.passed_on);
        let this = Arc::clone(self);
        let is_one_forgotten = waiting.passed_on.spawn(async move {
            let reply = pass_on::ask(ends.server, &query).await;
            this.reply(ends, &query, reply);
        });
        if is_one_forgotten {
            count(&counters.failed);
        }
    }

    fn reply(&self, ends: Ends, query: &[u8], reply: Reply) {
        match reply {
            Reply::Message(reply) => self.answer(ends, &reply),
            Reply::Unreachable(code) => self.unreachable(ends, code),
            Reply::Unsent(code) => {
                self.unreachable(ends, code);
                // A socket that is not connected is told of no ICMP error, where it would have
                // seen its own sendto() fail. One that is connected sees the error first.
                if let Some(failure) = dns::unreachable_cluster(query, Limit::Datagram) {
                    self.answer(ends, &failure);
                }
            }
            Reply::Silence => count(&self.dns.shared.counters.failed),
        }
    }

    fn answer(&self, ends: Ends, message: &[u8]) {
        match packet::udp(ends.alias, ends.source, message) {
            Some(packet) => self.tun.write(&packet),
            None => count(&self.dns.shared.counters.failed),
        }
    }

    /// The resolver goes on to its next server at once.
    fn unreachable(&self, ends: Ends, code: u8) {
        count(&self.dns.shared.counters.failed);
        if let Some(packet) = packet::datagram_unreachable(ends.source, ends.alias, code) {
            self.tun.write(&packet);
        }
    }
}

/// The next datagram: its length, its source and the alias that it was sent to; `None` for one
/// without.
async fn receive(
    socket: &AsyncFd<UdpSocket>,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, SocketAddrV4, SocketAddrV4)>> {
    socket
        .async_io(INPUT_OR_ERROR, |socket| receive_now(socket, buffer))
        .await
}

fn receive_now(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, SocketAddrV4, SocketAddrV4)>> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
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

    Ok(source
        .zip(alias)
        .map(|(source, alias)| (message.bytes, source, alias)))
}

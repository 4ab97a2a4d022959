//! Queries over UDP, which arrive at the socket in the private namespace and are answered through the
//! TUN.

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
    dns::{Limit, Query, Question, Step},
    packet,
};

use super::{aliases::AliasMap, newest::NewestTasks, tun::Tun};
use crate::{
    dns::{
        Dns,
        pass_on::{self, ServerReply},
    },
    shared::{Shared, count},
    sys::{self, BEAT_INTERVAL, Heartbeat, INPUT_OR_ERROR, Part},
};

/// The most passed-on queries that no server has answered yet. One more drops the oldest: a silent server
/// must not block one that answers.
const MAX_PASSED_ON: usize = 1024;
const MAX_MESSAGE: usize = 65_535;

pub(super) struct Datagrams {
    pub(super) dns: Arc<Dns>,
    pub(super) shared: Arc<Shared>,
    pub(super) aliases: AliasMap,
    pub(super) tun: Tun,
}

/// A query as received.
struct Datagram {
    source: SocketAddrV4,
    alias: SocketAddrV4,
    server: SocketAddrV4,
    query: Query,
}

/// Queries that wait for an answer, each kind with its own bound: those to a server of the machine never
/// block those to the cluster, nor the reverse.
struct Waiting {
    asked: JoinSet<(Datagram, Step)>,
    passed_on: NewestTasks,
}

impl Datagrams {
    /// Answers datagrams, and beats: a session that hangs here, or in the relay, loses port 53.
    pub(super) async fn serve(
        self: Arc<Self>,
        socket: UdpSocket,
        heartbeat: Arc<Heartbeat>,
    ) -> io::Result<()> {
        let socket = sys::watched(socket)?;
        let mut waiting = Waiting {
            asked: JoinSet::new(),
            passed_on: NewestTasks::new(MAX_PASSED_ON),
        };
        let mut beat = interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            tokio::select! {
                _ = beat.tick() => heartbeat.beat(Part::Dns),
                Some(()) = waiting.passed_on.join_next() => {}
                Some(asked) = waiting.asked.join_next() => {
                    match asked {
                        Ok((datagram, step)) => self.take(datagram, step, &mut waiting),
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
                    let query = Query::decode(buffer[..length].to_vec(), Limit::Datagram);
                    let step = self.dns.decide(&query);
                    let datagram = Datagram { source, alias, server, query };
                    self.take(datagram, step, &mut waiting);
                }
            }
        }
    }

    fn take(self: &Arc<Self>, datagram: Datagram, step: Step, waiting: &mut Waiting) {
        match step {
            Step::Send(answer) | Step::Fail(answer) => {
                self.dns.note_truncated(datagram.server, &answer);
                self.answer(&datagram, &answer);
            }
            Step::AskCluster(question) => self.ask(datagram, question, waiting),
            Step::PassOn => self.pass_on(datagram, waiting),
        }
    }

    fn ask(self: &Arc<Self>, datagram: Datagram, question: Question, waiting: &mut Waiting) {
        let Some(permit) = self.dns.permit() else {
            count(&self.shared.counters.failed);
            return;
        };
        let dns = Arc::clone(&self.dns);
        waiting.asked.spawn(async move {
            let step = dns.ask_cluster(&datagram.query, question).await;
            drop(permit);
            (datagram, step)
        });
    }

    fn pass_on(self: &Arc<Self>, datagram: Datagram, waiting: &mut Waiting) {
        let counters = &self.shared.counters;
        count(&counters.passed_on);
        let this = Arc::clone(self);
        let is_one_forgotten = waiting.passed_on.spawn(async move {
            let reply = pass_on::ask(datagram.server, datagram.query.message()).await;
            this.reply(&datagram, reply);
        });
        if is_one_forgotten {
            count(&counters.failed);
        }
    }

    fn reply(&self, datagram: &Datagram, reply: ServerReply) {
        match reply {
            ServerReply::Message(reply) => self.answer(datagram, &reply),
            ServerReply::Unreachable(code) => self.unreachable(datagram, code),
            ServerReply::Unsent(code) => {
                self.unreachable(datagram, code);
                // An unconnected socket sees no ICMP error, where its own sendto() would have failed.
                // A connected one sees the ICMP error first.
                if let Some(failure) = datagram.query.failure() {
                    self.answer(datagram, &failure);
                }
            }
            ServerReply::Silence => count(&self.shared.counters.failed),
        }
    }

    fn answer(&self, to: &Datagram, message: &[u8]) {
        match packet::udp(to.alias, to.source, message) {
            Some(packet) => self.tun.write(&packet),
            None => count(&self.shared.counters.failed),
        }
    }

    /// The resolver goes on to its next server at once.
    fn unreachable(&self, datagram: &Datagram, code: u8) {
        count(&self.shared.counters.failed);
        let Datagram { source, alias, .. } = *datagram;
        if let Some(packet) = packet::datagram_unreachable(source, alias, code) {
            self.tun.write(&packet);
        }
    }
}

/// The next datagram: its length, its source and the alias that it was sent to; `None` if an address
/// is missing.
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

//! One connection, on a thread of its own: requests in, replies out, and the bundle that lives
//! as long as the connection does.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tp_core::sessions::NetworkChanges;
use tp_ebpf_loader::{Counter, CounterKind, CounterValue};
use tp_root_api::{
    Counters, Datapath, Descriptors, MAX_NETWORKS_PER_PACKET, MAX_PACKET, OpenDatapath, PROTOCOL,
    RefusedKind, Reply, Request, Steer, wire,
};

use crate::{
    closer::Closer,
    context::{Context, Lifetime},
    datapath::{self, Bundle, netns::NetNamespace, programs::Expectation},
    packet::{self, Incoming},
    peer::PeerProcess,
    request_error::RequestError,
    scope,
};

/// For the first request of a peer that is refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

const DNS_PORT: u16 = 53;

pub(crate) struct Connection {
    socket: Arc<OwnedFd>,
    peer: PeerProcess,
    context: Arc<Context>,
    bundle: Option<Bundle>,
    has_had_bundle: bool,
    /// The peer has said that it speaks another version of the protocol.
    is_of_other_protocol: bool,
    is_broken: bool,
    /// The peer has said that a session is about to come.
    expectation: Option<Expectation>,
    /// Descriptors that came from the peer and are closed after all else.
    closed_last: Vec<OwnedFd>,
    closer: Closer,
}

impl Connection {
    pub(crate) fn new(socket: Arc<OwnedFd>, peer: PeerProcess, context: Arc<Context>) -> Self {
        Self {
            socket,
            peer,
            context,
            bundle: None,
            has_had_bundle: false,
            is_of_other_protocol: false,
            is_broken: false,
            expectation: None,
            closed_last: Vec::new(),
            closer: Closer::default(),
        }
    }

    /// Serves until the peer is gone, then drops the bundle.
    pub(crate) fn serve(mut self) {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let received = match packet::receive(&self.socket, &mut buffer) {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "Connection failed");
                    break;
                }
            };
            let sent = match received {
                Incoming::Closed => break,
                Incoming::Malformed(refusal) => self.send(&refusal.into_reply()),
                Incoming::Request(request, fds) => self.answer(request, fds),
                Incoming::Foreign(fds) => {
                    self.closed_last = fds;
                    let message = "a descriptor came that the request does not carry";
                    // The connection ends either way.
                    let _ = self.send(&RequestError::invalid(message).into_reply());
                    break;
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "Cannot reply");
                break;
            }
            if self.is_broken || !self.closed_last.is_empty() {
                break;
            }
        }
        self.close();
    }

    /// Sends the reason to a peer that is not served, in reply to its first request: an earlier packet
    /// would be lost with the connection.
    pub(crate) fn refuse(socket: &OwnedFd, refusal: RequestError) {
        let mut buffer = vec![0; MAX_PACKET];
        let replied = set_socket_timeout(socket, Timeout::Recv, Some(REFUSAL_TIMEOUT))
            .map_err(io::Error::from)
            .and_then(|()| packet::receive(socket, &mut buffer))
            .and_then(|_| wire::send(socket, &refusal.into_reply(), &[]));
        if let Err(error) = replied {
            tracing::debug!(%error, "Cannot tell a peer that it is refused");
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        let (reply, descriptors) = self
            .handle(request, fds)
            .unwrap_or_else(|refusal| (refusal.into_reply(), None));
        match descriptors {
            Some(descriptors) => wire::send(&self.socket, &reply, &descriptors.as_fds()),
            None => self.send(&reply),
        }
    }

    fn handle(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Option<Descriptors>), RequestError> {
        let reply = match request {
            Request::Open(open) => {
                let opened = self.open(&open, fds).inspect_err(|refusal| {
                    tracing::debug!(reason = %refusal, "Data path refused");
                });
                let (description, descriptors) = opened?;
                return Ok((Reply::Opened(description), Some(descriptors)));
            }
            Request::Hello {
                version,
                protocol,
                connects,
            } => {
                tracing::debug!(%version, protocol, "Peer says hello");
                self.is_of_other_protocol = protocol != PROTOCOL;
                if connects {
                    self.context.has_served.store(true, Ordering::Relaxed);
                }
                if connects && !self.is_of_other_protocol {
                    self.expectation = self.context.machine.expect();
                }
                Reply::Hello {
                    version: tp_core::VERSION.to_owned(),
                    protocol: PROTOCOL,
                    pid: std::process::id(),
                    ends_with_last_session: self.context.lifetime == Lifetime::WithLastSession,
                }
            }
            Request::Steer(Steer {
                include,
                exclude,
                remove,
            }) => {
                if include.len() + exclude.len() + remove.len() > MAX_NETWORKS_PER_PACKET {
                    return Err(RequestError::invalid(format!(
                        "one request changes at most {MAX_NETWORKS_PER_PACKET} networks"
                    )));
                }
                let changes = NetworkChanges {
                    include,
                    exclude,
                    remove,
                };
                let steered = self.bundle()?.steer(&changes);
                self.keep_if_whole(steered)?;
                Reply::Done
            }
            Request::NameServers { servers } => {
                if servers.iter().any(|server| server.port() != DNS_PORT) {
                    return Err(RequestError::invalid("a name server is asked at port 53"));
                }
                let set = self.bundle()?.set_name_servers(&servers);
                self.keep_if_whole(set)?;
                Reply::Done
            }
            Request::Overlaps => Reply::Overlaps {
                overlaps: self.bundle()?.overlaps(),
            },
            Request::ShowClient { client } => {
                let shown = self.show_client(client, &fds);
                // Before the reply: while it is open here, the peer cannot close it.
                for fd in fds {
                    self.closed_last.extend(self.closer.close(fd).err());
                }
                shown?;
                Reply::Done
            }
            Request::Counters => Reply::Counters(self.counters()?),
            Request::Close => {
                self.close();
                Reply::Done
            }
        };

        Ok((reply, None))
    }

    fn open(
        &mut self,
        open: &OpenDatapath,
        fds: Vec<OwnedFd>,
    ) -> Result<(Datapath, Descriptors), RequestError> {
        if self.is_of_other_protocol {
            return Err(RequestError::unsupported(format!(
                "the root daemon (version {}) does not understand this session, which speaks another \
                 version of its protocol ({PROTOCOL} is needed): run the tp of the release that is \
                 installed, or `sudo tp-daemon install` of this one",
                tp_core::VERSION
            )));
        }
        if self.has_had_bundle {
            return Err(RequestError::invalid(
                "this connection has or had a data path already: connect again for another",
            ));
        }
        let started = Instant::now();
        let Ok([fd]) = <[OwnedFd; 1]>::try_from(fds) else {
            return Err(RequestError::invalid(
                "the request must carry one descriptor, the session's network namespace",
            ));
        };
        let host = NetNamespace::from_descriptor(fd)
            .ok_or_else(|| RequestError::invalid("the descriptor is not a network namespace"))?;
        if self.peer.pid == 0 {
            return Err(RequestError::unsupported(
                "the session runs in a process namespace that the root daemon cannot see",
            ));
        }
        // Descriptors of foreign namespaces are easy to get, for example under /run/netns.
        if !host.is_of_process(self.peer.pid)? {
            return Err(RequestError::permission(
                "the descriptor is not the network namespace that the session runs in",
            ));
        }
        self.peer.check_is_there()?;
        // The guard of the aliases compares user ids as the namespace's owner sees them.
        if !host.has_our_users()? {
            return Err(RequestError::unsupported(
                "the network namespace belongs to another user namespace, for example to a \
                 rootless container; run `tp connect` outside of it",
            ));
        }
        let scope = scope::resolve(&open.scope, &self.peer, self.context.machine.hierarchy())?;
        let (bundle, description, descriptors) = Bundle::open(datapath::DatapathRequest {
            host,
            scope,
            peer: &self.peer,
            udp: open.udp,
            avoid: &open.avoid,
            quota: &self.context.quota,
            machine: &self.context.machine,
            tuning: self.context.tuning,
        })?;
        self.bundle = Some(bundle);
        self.expectation = None;
        self.has_had_bundle = true;
        self.context.has_served.store(true, Ordering::Relaxed);
        let elapsed = started.elapsed();
        tracing::info!(uid = self.peer.uid, ?elapsed, "Data path opened");

        Ok((description, descriptors))
    }

    fn show_client(&self, client: SocketAddr, fds: &[OwnedFd]) -> Result<(), RequestError> {
        let [socket] = fds else {
            return Err(RequestError::invalid(
                "the request must carry one descriptor, the socket that is about to connect",
            ));
        };

        self.bundle()?.show_client(socket, client)
    }

    /// A change of which the kernel has taken a part leaves nothing that can be trusted: the connection
    /// ends with the reply, and the session with it.
    fn keep_if_whole(&mut self, changed: Result<(), RequestError>) -> Result<(), RequestError> {
        if let Err(error) = &changed
            && error.kind == RefusedKind::Failed
        {
            tracing::error!(%error, "Data path cannot be changed");
            self.is_broken = true;
        }

        changed
    }

    fn close(&mut self) {
        let Some(bundle) = self.bundle.take() else {
            return;
        };
        let started = Instant::now();
        drop(bundle);
        let elapsed = started.elapsed();
        tracing::info!(uid = self.peer.uid, ?elapsed, "Data path dropped");
    }

    fn counters(&self) -> Result<Counters, RequestError> {
        let mut counters = Counters::default();
        let bundle = self.bundle()?;
        for CounterValue { counter, value } in bundle.counters()? {
            let named = (counter.name().to_owned(), value);
            match (counter.kind(), counter) {
                (CounterKind::Drop, _) => counters.drops.push(named),
                (CounterKind::NotSteered, _) => counters.not_steered.push(named),
                (CounterKind::Event, Counter::Steered) => counters.steered = value,
                (CounterKind::Event, Counter::Aliases) => counters.aliases = bundle.aliases(value),
                (CounterKind::Event, _) => {}
            }
        }

        Ok(counters)
    }

    fn bundle(&self) -> Result<&Bundle, RequestError> {
        self.bundle
            .as_ref()
            .ok_or_else(|| RequestError::invalid("this connection has no data path"))
    }

    fn send(&self, reply: &Reply) -> io::Result<()> {
        wire::send(&self.socket, reply, &[])
    }
}

#[cfg(test)]
mod tests {
    use tp_root_api::DropReason;

    use super::*;

    #[test]
    fn the_reasons_that_sessions_act_upon_are_counters_of_drops() {
        for (reason, counter) in [
            (DropReason::ForeignSocket, Counter::ForeignSocket),
            (DropReason::Unasked, Counter::Unasked),
        ] {
            assert_eq!(reason.name(), counter.name());
            assert_eq!(counter.kind(), CounterKind::Drop);
        }
    }
}

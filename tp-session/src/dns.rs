//! Queries of the session's user to the machine's own name servers: answered, asked in the
//! cluster, or passed on as they are.
//!
//! `tp_core::dns` decides, and its steps are taken here. How a query comes, and how its answer goes
//! back, is the business of the data path: this module knows neither the TUN nor aliases.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tp_core::dns::{ClusterState, Query, Question, Step, Zone};
use tp_proto::tunnel::ResolveRequest;

use super::shared::{Shared, count};

pub(super) use stream::NameServerStream;

pub(super) mod pass_on;
mod search;
pub(super) mod servers;
mod stream;

/// Questions to the cluster under way. A datagram with a further one is lost, and its resolver asks
/// again; a stream waits.
const MAX_ASKED: usize = 1024;
/// For a name that only the cluster can have. A resolver asks again after 5 s (resolv.conf(5));
/// the manager, which may take 8 s for several attempts, is not waited for longer.
const CLUSTER_LIMIT: Duration = Duration::from_secs(4);
/// For a name that somebody else may have: the server that was meant is asked next, and what it
/// says must come within the same 5 s.
const FOREIGN_LIMIT: Duration = Duration::from_secs(2);
/// A resolver that got a truncated answer comes back by TCP within this time.
const COME_BACK: Duration = Duration::from_secs(5);
/// Name servers that are remembered; of more, the oldest is forgotten.
const MAX_SERVERS: usize = 64;
/// The flag TC in the third byte of a message.
const TRUNCATED: u8 = 0b10;

/// Decides who answers, and asks the cluster.
pub(super) struct Dns {
    shared: Arc<Shared>,
    asking: Arc<Semaphore>,
    /// All that the machine has or had since connecting, the newest first.
    servers: Mutex<VecDeque<Known>>,
}

struct Known {
    server: SocketAddrV4,
    /// When a resolver that asked this server was last told to come back by TCP, and how many have
    /// not come yet.
    sent_to_tcp: Option<(Instant, usize)>,
}

impl Known {
    /// Resolvers that are to come by TCP.
    fn awaited(&self) -> usize {
        self.sent_to_tcp
            .filter(|(sent, _)| sent.elapsed() < COME_BACK)
            .map_or(0, |(_, awaited)| awaited)
    }
}

impl Dns {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            asking: Arc::new(Semaphore::new(MAX_ASKED)),
            servers: Mutex::default(),
        })
    }

    /// Whether the machine has this name server, or had it: a socket that is connected to it goes
    /// on asking.
    pub(super) fn is_name_server(&self, address: SocketAddrV4) -> bool {
        self.with_servers(|servers| servers.iter().any(|known| known.server == address))
    }

    fn with_servers<T>(&self, look: impl FnOnce(&mut VecDeque<Known>) -> T) -> T {
        let current = self.shared.name_servers.borrow();
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        for server in current.iter() {
            if servers.iter().all(|known| known.server != *server) {
                servers.push_front(Known {
                    server: *server,
                    sent_to_tcp: None,
                });
            }
        }
        servers.truncate(MAX_SERVERS);
        look(&mut servers)
    }

    /// A truncated answer of ours sends its resolver to the server by TCP.
    pub(super) fn note_truncated(&self, server: SocketAddrV4, answer: &[u8]) {
        if answer.get(2).is_none_or(|flags| flags & TRUNCATED == 0) {
            return;
        }
        self.with_servers(|servers| {
            let known = servers.iter_mut().find(|known| known.server == server);
            if let Some(known) = known {
                let before = known.awaited();
                known.sent_to_tcp = Some((Instant::now(), before + 1));
            }
        });
    }

    /// Whether somebody who was sent to TCP comes; nobody else is served by other than the server.
    fn is_expected_by_tcp(&self, server: SocketAddrV4) -> bool {
        self.with_servers(|servers| {
            let known = servers.iter_mut().find(|known| known.server == server);
            let Some(known) = known.filter(|known| known.awaited() > 0) else {
                return false;
            };
            if let Some((_, awaited)) = &mut known.sent_to_tcp {
                *awaited -= 1;
            }
            true
        })
    }

    /// The first step of `query`, without waiting for anything: an answer of the table is there at
    /// once.
    pub(super) fn decide(&self, query: &Query) -> Step {
        let counters = &self.shared.counters;
        let cluster = match self.shared.up() {
            Some(_) => ClusterState::Reachable,
            None => ClusterState::Unreachable,
        };
        let step = self.shared.zone(|zone| zone.decide(query, cluster));
        match &step {
            Step::Send(_) => count(&counters.answered),
            Step::Fail(_) => count(&counters.failed),
            Step::AskCluster(_) => count(&counters.asked),
            Step::PassOn => {}
        }

        step
    }

    /// Room for a question to the cluster; `None` if [`MAX_ASKED`] are under way.
    pub(super) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.asking).try_acquire_owned().ok()
    }

    /// Asks the cluster when there is room for a question more.
    async fn ask(&self, query: &Query, question: Question) -> Step {
        let _room = self.asking.acquire().await;

        self.ask_cluster(query, question).await
    }

    /// Takes all steps of `query` that ask the cluster; the step after them.
    pub(super) async fn ask_cluster(&self, query: &Query, mut question: Question) -> Step {
        let patience = if question.is_ours() {
            CLUSTER_LIMIT
        } else {
            FOREIGN_LIMIT
        };
        let step = match timeout(patience, self.converse(query, &mut question)).await {
            Ok(Ok(step)) => step,
            Ok(Err(status)) => {
                tracing::debug!(reason = status.message(), "Cluster did not resolve");
                query.unanswered(&question)
            }
            Err(_) => query.unanswered(&question),
        };
        match &step {
            Step::Send(answer) => {
                let is_cluster = |address: Ipv4Addr| {
                    let has_it = |zone: &Zone| zone.is_cluster_address(address.into());
                    self.shared.zone(has_it)
                };
                self.shared.leads.learn(answer, is_cluster).await;
            }
            Step::Fail(_) => count(&self.shared.counters.failed),
            Step::AskCluster(_) | Step::PassOn => {}
        }

        step
    }

    async fn converse(
        &self,
        query: &Query,
        question: &mut Question,
    ) -> Result<Step, tonic::Status> {
        let Some(mut up) = self.shared.up() else {
            return Ok(query.unanswered(question));
        };
        loop {
            let request = ResolveRequest {
                query: question.message.clone().into(),
            };
            let reply = up.manager.resolve(request).await?.into_inner().response;
            let answered = |zone: &Zone| query.answered(question, &reply, zone);
            match self.shared.zone(answered) {
                Step::AskCluster(further) => *question = further,
                step => return Ok(step),
            }
        }
    }
}

//! Queries of the session's user to the machine's own name servers: answered, asked in the
//! cluster, or passed on as they are.
//!
//! `tp_core::dns` decides, and its steps are taken here. The data path
//! receives queries and returns answers: this module knows neither the TUN nor aliases.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tp_core::dns::{ClusterState, Query, Question, Step, Zone};
use tp_process::sync;
use tp_proto::tunnel::ResolveRequest;

use super::shared::{Shared, count};

pub(super) use stream::NameServerStream;

pub(super) mod pass_on;
mod search;
pub(super) mod servers;
mod stream;

/// The most questions to the cluster under way. Beyond it, a datagram is dropped, and its resolver
/// retries; a stream waits.
const MAX_QUESTIONS: usize = 1024;
/// Bounds a question about a name that only the cluster can have. A resolver retries after 5 s
/// (resolv.conf(5)); the manager may take 8 s for several attempts.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds a question about any other name: the original server is asked next, and must answer within
/// the same 5 s.
const FOREIGN_TIMEOUT: Duration = Duration::from_secs(2);
/// A resolver that got a truncated answer retries by TCP within this time.
const TCP_RETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// The most name servers that are remembered; the oldest is forgotten.
const MAX_SERVERS: usize = 64;
/// The flag TC in the third byte of a message.
const TRUNCATED: u8 = 0b10;

/// Decides who answers, and asks the cluster.
pub(super) struct Dns {
    shared: Arc<Shared>,
    asking: Arc<Semaphore>,
    /// All name servers of the machine since connecting, the newest first.
    servers: Mutex<VecDeque<KnownServer>>,
}

struct KnownServer {
    server: SocketAddrV4,
    /// The time of the last truncated answer for this server, and the number of resolvers that have not
    /// retried by TCP yet.
    sent_to_tcp: Option<(Instant, usize)>,
}

impl KnownServer {
    /// The number of resolvers that are expected by TCP.
    fn awaited(&self) -> usize {
        self.sent_to_tcp
            .filter(|(sent, _)| sent.elapsed() < TCP_RETRY_TIMEOUT)
            .map_or(0, |(_, awaited)| awaited)
    }
}

impl Dns {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            asking: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            servers: Mutex::default(),
        })
    }

    /// Returns whether the machine has or had this name server: a connected socket goes on using it.
    pub(super) fn is_name_server(&self, address: SocketAddrV4) -> bool {
        self.with_servers(|servers| servers.iter().any(|known| known.server == address))
    }

    fn with_servers<T>(&self, look: impl FnOnce(&mut VecDeque<KnownServer>) -> T) -> T {
        let current = self.shared.name_servers.borrow();
        let mut servers = sync::lock(&self.servers);
        for server in current.iter() {
            if servers.iter().all(|known| known.server != *server) {
                servers.push_front(KnownServer {
                    server: *server,
                    sent_to_tcp: None,
                });
            }
        }
        servers.truncate(MAX_SERVERS);
        look(&mut servers)
    }

    /// Notes an answer of ours if it is truncated: its resolver retries by TCP.
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

    /// Takes one of the resolvers that are expected by TCP; false if there is none. Only those are served
    /// without the server.
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

    /// The first step of `query`, without waiting: an answer from the table is ready at once.
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

    /// A permit for a question to the cluster; `None` if [`MAX_QUESTIONS`] are under way.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.asking).try_acquire_owned().ok()
    }

    /// Waits for a permit, then asks the cluster.
    async fn ask(&self, query: &Query, question: Question) -> Step {
        let _permit = self.asking.acquire().await;

        self.ask_cluster(query, question).await
    }

    /// Takes all steps of `query` that ask the cluster; returns the step after them.
    pub(super) async fn ask_cluster(&self, query: &Query, mut question: Question) -> Step {
        let limit = if question.is_ours() {
            CLUSTER_TIMEOUT
        } else {
            FOREIGN_TIMEOUT
        };
        let step = match timeout(limit, self.resolve(query, &mut question)).await {
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
                self.shared.external.learn(answer, is_cluster).await;
            }
            Step::Fail(_) => count(&self.shared.counters.failed),
            Step::AskCluster(_) | Step::PassOn => {}
        }

        step
    }

    async fn resolve(&self, query: &Query, question: &mut Question) -> Result<Step, tonic::Status> {
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

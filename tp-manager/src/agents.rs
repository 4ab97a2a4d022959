//! The agents of the nodes: admits them, leases Intercepts to them, and passes the connections that
//! they intercepted on to sessions.

mod carried;
mod environs;
mod sources;
pub(crate) mod tokens;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tp_process::sync::lock;
use tp_proto::agent::{AgentNews, EnvironQuestion, Lease, ManagerNews};
use tp_transport::{
    agents::{AgentServer, AgentStream, Greeting, IncomingCarrier, Receiver, Sender},
    keep_alive,
};

use crate::{intercepts::Intercepts, model::SharedModel};
use environs::Questions;
use sources::{Place, ReviewTurn, Sources};
use tokens::{AgentIdentity, TokenError, Tokens};

/// Of one node: a new agent may connect before the end of the old one is noticed.
const MAX_CONTROLS_OF_NODE: usize = 2;
/// Carriers that wait for a connection, of one agent and in all.
const MAX_IDLE_OF_AGENT: usize = 64;
const MAX_IDLE: usize = 8192;
/// Carried connections, of one agent and in all.
const MAX_CARRIED_OF_AGENT: usize = 4096;
const MAX_CARRIED: usize = 16_384;
/// Of the review of a token, with the wait for its turn.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// An agent's token expires, and its pod may be gone: it is reviewed again. The agent makes another
/// connection as soon as it has another token, so that nothing is cut then.
const REVIEW_INTERVAL: Duration = Duration::from_secs(300);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time between two news.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);
/// Changes within this time are told together.
const COALESCE_INTERVAL: Duration = Duration::from_millis(10);
/// Of the leases in one message, in bytes: the protocol allows 16 KiB.
const MAX_NEWS: usize = 15 << 10;

/// Serves agents.
pub(crate) struct Agents {
    server: AgentServer,
    intercepts: Arc<Intercepts>,
    model: SharedModel,
    tokens: Box<dyn Tokens>,
    admitted: Mutex<BTreeMap<u64, Arc<Agent>>>,
    idle: Arc<Semaphore>,
    carried: Arc<Semaphore>,
    sources: Sources,
    review_interval: Duration,
}

/// An agent whose control connection is here.
struct Agent {
    number: u64,
    node: Arc<str>,
    idle: Arc<Semaphore>,
    carried: Arc<Semaphore>,
    questions: Questions,
    replaced: CancellationToken,
}

impl Agents {
    pub(crate) fn new(
        server: AgentServer,
        intercepts: Arc<Intercepts>,
        model: SharedModel,
        tokens: Box<dyn Tokens>,
    ) -> Self {
        Self {
            server,
            intercepts,
            model,
            tokens,
            admitted: Mutex::default(),
            idle: Arc::new(Semaphore::new(MAX_IDLE)),
            carried: Arc::new(Semaphore::new(MAX_CARRIED)),
            sources: Sources::new(),
            review_interval: REVIEW_INTERVAL,
        }
    }

    /// Accepts connections of agents until it is aborted.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "Cannot accept an agent");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(place) = self.sources.enter(from.ip()) else {
                tracing::debug!(%from, "There are as many new connections of agents as fit");
                continue;
            };
            let agents = Arc::clone(&self);
            connections.spawn(async move { agents.connection(tcp, from, place).await });
        }
    }

    async fn connection(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, place: Place) {
        if let Err(error) = keep_alive(&tcp) {
            tracing::debug!(%error, "Quiet connection of an agent not probed");
        }
        match self.server.accept(tcp).await {
            Ok(AgentStream::Greeting(greeting)) => {
                Box::pin(self.greeted(greeting, from, place)).await;
            }
            Ok(AgentStream::Carrier(carrier)) => {
                drop(place);
                Box::pin(self.carrier(carrier)).await;
            }
            Err(error) => tracing::debug!(%from, %error, "Connection to the agents' port ended"),
        }
    }

    async fn greeted(&self, greeting: Greeting, from: SocketAddr, place: Place) {
        let token = greeting.token.clone();
        let turn = self.sources.review(&place);
        let identity = match self.review(&token, turn).await {
            Ok(identity) => identity,
            Err(error) => {
                let reason = error.to_string();
                tracing::info!(%from, reason, "Agent refused");
                greeting.refuse(&reason).await;
                return;
            }
        };
        let version = greeting.version.clone();
        let control = match greeting.admit().await {
            Ok(control) => control,
            Err(error) => {
                tracing::debug!(%from, %error, "Agent gone before it was admitted");
                return;
            }
        };
        drop(place);
        let (questions, asked) = Questions::new();
        let entered = self.enter(control.agent, identity.node.as_str().into(), questions);
        let agent = Arc::clone(&entered.agent);
        tracing::info!(node = %agent.node, pod = identity.pod, version, "Agent connected");
        tokio::select! {
            () = self.lease(control.news, asked) => {}
            () = self.take_reports(&agent, control.reports) => {}
            () = self.review_again(&token, &identity) => {}
            () = agent.replaced.cancelled() => {}
        }
        drop((control.guard, entered));
        tracing::info!(node = %agent.node, "Agent disconnected");
    }

    async fn review(
        &self,
        token: &str,
        turn: impl Future<Output = Option<ReviewTurn>>,
    ) -> Result<AgentIdentity, TokenError> {
        let reviewed = async {
            let _turn = turn.await.ok_or_else(|| {
                let reason = "too many tokens from this address are being reviewed";
                TokenError::Unknown(reason.into())
            })?;
            self.tokens.review(token.to_owned()).await
        };
        let reviewed = timeout(REVIEW_TIMEOUT, reviewed).await;

        reviewed.unwrap_or_else(|_| {
            let reason = "the API server did not review the token in time";
            Err(TokenError::Unknown(reason.into()))
        })
    }

    /// Ends when the token is not that agent's any more.
    async fn review_again(&self, token: &str, identity: &AgentIdentity) {
        loop {
            sleep(self.review_interval).await;
            match self.review(token, self.sources.turn()).await {
                Ok(now) if now == *identity => {}
                // While the API server is away, nobody can take a right away either.
                Err(TokenError::Unknown(reason)) => {
                    tracing::debug!(reason, "Agent not reviewed again");
                }
                Ok(_) => return tracing::info!("Token of an agent names another pod now"),
                Err(TokenError::Refused(reason)) => {
                    return tracing::info!(reason, "Agent admitted no longer");
                }
            }
        }
    }

    /// Of too many of one node the oldest ends.
    fn enter(&self, number: u64, node: Arc<str>, questions: Questions) -> Entered<'_> {
        let agent = Arc::new(Agent {
            number,
            node,
            idle: Arc::new(Semaphore::new(MAX_IDLE_OF_AGENT)),
            carried: Arc::new(Semaphore::new(MAX_CARRIED_OF_AGENT)),
            questions,
            replaced: CancellationToken::new(),
        });
        let mut admitted = lock(&self.admitted);
        admitted.insert(number, Arc::clone(&agent));
        let of_node = admitted.values().rev().filter(|it| it.node == agent.node);
        for older in of_node.skip(MAX_CONTROLS_OF_NODE) {
            older.replaced.cancel();
        }
        drop(admitted);

        Entered {
            agents: self,
            agent,
        }
    }

    /// Sends the leases each second, and at once when they change, and questions between.
    async fn lease(
        &self,
        mut news: Sender<ManagerNews>,
        mut questions: mpsc::Receiver<EnvironQuestion>,
    ) {
        let mut changes = self.intercepts.changes();
        loop {
            changes.mark_unchanged();
            let leases = self.intercepts.leases();
            let due = Instant::now() + NEWS_INTERVAL;
            for message in round(&leases) {
                if !sent(&mut news, &message).await {
                    return;
                }
            }
            loop {
                let changed = tokio::select! {
                    changed = timeout_at(due, changes.changed()) => changed,
                    Some(question) = questions.recv() => {
                        if !sent(&mut news, &environs::message(question)).await {
                            return;
                        }
                        continue;
                    }
                };
                if !matches!(changed, Ok(Ok(()))) {
                    break;
                }
                sleep(COALESCE_INTERVAL).await;
                if self.intercepts.leases() != leases {
                    break;
                }
            }
        }
    }

    async fn take_reports(&self, agent: &Agent, mut reports: Receiver<AgentNews>) {
        let mut has_lied = false;
        loop {
            match reports.receive().await {
                Ok(news) => {
                    if let Some(part) = news.environ {
                        agent.questions.take(part);
                    }
                    let foreign = self.intercepts.report(agent.number, &agent.node, news.pods);
                    if foreign > 0 && !std::mem::replace(&mut has_lied, true) {
                        let node = &agent.node;
                        tracing::warn!(%node, foreign, "Agent reports on pods of other nodes");
                    }
                }
                Err(error) => return tracing::debug!(%error, "Control connection ended"),
            }
        }
    }

    async fn carrier(&self, carrier: IncomingCarrier) {
        let Some(agent) = lock(&self.admitted).get(&carrier.agent).cloned() else {
            return;
        };
        let idle = (
            Arc::clone(&agent.idle).try_acquire_owned(),
            Arc::clone(&self.idle).try_acquire_owned(),
        );
        let (Ok(of_agent), Ok(of_all)) = idle else {
            tracing::debug!(node = %agent.node, "Agent has as many carriers as fit");
            return;
        };
        let incoming = tokio::select! {
            incoming = carrier.connection() => incoming,
            () = agent.replaced.cancelled() => return,
        };
        drop((of_agent, of_all));
        match incoming {
            Ok(Some(incoming)) => self.carry(&agent, incoming).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(node = %agent.node, %error, "Carrier ended"),
        }
    }
}

/// Returns whether the agent takes it.
async fn sent(news: &mut Sender<ManagerNews>, message: &ManagerNews) -> bool {
    match timeout(SEND_TIMEOUT, news.send(message)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::debug!(%error, "Cannot send leases"),
        Err(_) => tracing::debug!("Agent does not read its leases"),
    }

    false
}

/// Removes an agent when dropped.
struct Entered<'a> {
    agents: &'a Agents,
    agent: Arc<Agent>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.agent.replaced.cancel();
        lock(&self.agents.admitted).remove(&self.agent.number);
        self.agents.intercepts.forget_agent(self.agent.number);
    }
}

/// All leases, in as few messages as they fit into: one at least.
fn round(leases: &[Lease]) -> impl Iterator<Item = ManagerNews> {
    use prost::Message as _;

    let mut rest = Some(leases);
    std::iter::from_fn(move || {
        let leases = rest.take()?;
        let mut size = 0;
        let fitting = leases.iter().take_while(|lease| {
            size += lease.encoded_len() + 4;
            size <= MAX_NEWS
        });
        // A lease is much smaller than a message.
        let (first, others) = leases.split_at(fitting.count().max(1).min(leases.len()));
        rest = Some(others).filter(|others| !others.is_empty());

        Some(ManagerNews {
            leases: first.to_vec(),
            more: rest.is_some(),
            environ: None,
        })
    })
}

#[cfg(test)]
mod tests;

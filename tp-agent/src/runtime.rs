//! Wires the parts together, and ends them in order.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, Config};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    agentd::Agentd,
    args::AgentArgs,
    connections::CarriedConnections,
    environ::{Environs, SessionRights},
    facts::{Facts, ManagerFacts, Rules},
    knowledge::{self, ClusterRights, Knowledge},
    managers::Managers,
    redirects::Redirects,
};

/// Bounds the API server's silence while it owes an answer, or the end of a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until a signal to end, or until a task ends that never should.
///
/// # Errors
///
/// What keeps the agent from its work.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let config = Config::infer()
        .await
        .context("cannot find the API server")?;
    let client = client(config).context("cannot set the connection to the API server up")?;

    let (facts, known) = watch::channel(Facts::default());
    let (managers, known_managers) = watch::channel(ManagerFacts::default());
    let rules = args.rules();
    let mut agent = NodeAgent::start(
        args.agentd_socket,
        args.token_file,
        rules,
        known,
        known_managers,
        Box::new(ClusterRights(client.clone())),
    )
    .context("cannot start a thread")?;
    let mut tasks = JoinSet::new();
    let knowledge = Knowledge::new(
        client.clone(),
        args.node_name.clone(),
        args.manager_namespace.clone(),
        facts,
    );
    tasks.spawn(knowledge.follow());
    let connected = Arc::clone(&agent.managers);
    let outdated = move || {
        let managers = Arc::clone(&connected);
        async move { managers.are_outdated().await }
    };
    let namespace = args.manager_namespace;
    tasks.spawn(knowledge::managers::follow(
        client, namespace, outdated, managers,
    ));
    tracing::info!(node = args.node_name, pod = args.pod_name, "Agent is ready");

    let stopped = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = agent.ended() => Err(anyhow::anyhow!("a part of the agent ended by itself")),
        _ = tasks.join_next() => Err(anyhow::anyhow!("a watch of the agent ended by itself")),
    };
    tracing::info!("Agent ends");
    if timeout(CLOSE_TIMEOUT, agent.close()).await.is_err() {
        tracing::debug!("Some redirects end with the process");
    }
    tasks.shutdown().await;

    stopped
}

/// A client that gives up a connection if an answer is overdue.
fn client(mut config: Config) -> kube::Result<Client> {
    config.read_timeout = Some(READ_TIMEOUT);
    // Counts from the request, not from the previous answer.
    config.reset_reader_on_write = true;

    Client::try_from(config)
}

/// The agent of a node, but for its knowledge of the cluster.
pub struct NodeAgent {
    tasks: JoinSet<()>,
    connections: Arc<CarriedConnections>,
    managers: Arc<Managers>,
}

impl NodeAgent {
    /// Starts to carry out what the facts say. `agentd` is the socket of `tp-agentd`; `token_file` is
    /// read for each connection to a manager; `rights` decides who may read an environment.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(
        agentd: PathBuf,
        token_file: PathBuf,
        rules: Rules,
        facts: watch::Receiver<Facts>,
        known_managers: watch::Receiver<ManagerFacts>,
        rights: Box<dyn SessionRights>,
    ) -> io::Result<Self> {
        let agentd = Agentd::start(agentd)?;
        let environs = Environs::new(agentd.clone(), facts.clone(), rules.clone(), rights);
        let managers = Arc::new(Managers::new(token_file, environs));
        let connections = Arc::new(CarriedConnections::new(Arc::clone(&managers)));
        let redirects = Redirects {
            agentd,
            managers: Arc::clone(&managers),
            connections: Arc::clone(&connections),
            rules,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&managers).keep(known_managers));
        tasks.spawn(redirects.run(facts));

        Ok(Self {
            tasks,
            connections,
            managers,
        })
    }

    /// Resolves when a part has ended, which none should.
    pub async fn ended(&mut self) {
        self.tasks.join_next().await;
    }

    /// Ends the redirects, then the connections.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
        self.connections.abort();
    }
}

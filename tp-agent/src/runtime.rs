//! Wires the parts together, and ends them in order.

use std::{io, path::PathBuf, sync::Arc};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    agentd::Agentd,
    connections::Connections,
    facts::{Facts, ManagerFacts, Rules},
    managers::Managers,
    redirects::Redirects,
};

/// The agent of a node, but for its knowledge of the cluster.
pub struct NodeAgent {
    tasks: JoinSet<()>,
    connections: Arc<Connections>,
    managers: Arc<Managers>,
}

impl NodeAgent {
    /// Starts to carry out what the facts say. `agentd` is the socket of `tp-agentd`; `token_file` is
    /// read for each connection to a manager.
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
    ) -> io::Result<Self> {
        let managers = Arc::new(Managers::new(token_file));
        let connections = Arc::new(Connections::new(Arc::clone(&managers)));
        let redirects = Redirects {
            agentd: Agentd::start(agentd)?,
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

    /// Resolves when the managers' published keys should be read again.
    pub fn managers_are_outdated(&self) -> impl Future<Output = ()> + Send + 'static {
        let managers = Arc::clone(&self.managers);

        async move { managers.are_outdated().await }
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

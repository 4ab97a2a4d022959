//! Containers are found in the API server, their environments by the agents.

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::Client;
use tp_proto::agent::EnvironQuestion;

use crate::{
    agents::Agents,
    grpc::Environments,
    index::find::find_container,
    model::{AgentEnviron, EnvironError, FindError, FoundContainer, WantedContainer},
};

pub(super) struct OfAgents {
    pub(super) client: Client,
    pub(super) agents: Arc<Agents>,
}

impl Environments for OfAgents {
    fn find(
        &self,
        wanted: WantedContainer,
    ) -> BoxFuture<'static, Result<FoundContainer, FindError>> {
        find_container(self.client.clone(), wanted)
    }

    fn read(
        &self,
        node: String,
        question: EnvironQuestion,
    ) -> BoxFuture<'static, Result<AgentEnviron, EnvironError>> {
        let agents = Arc::clone(&self.agents);
        Box::pin(async move { agents.environ(&node, question).await })
    }
}

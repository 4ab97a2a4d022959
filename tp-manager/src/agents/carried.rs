//! Intercepted connections: the checks, and the way to the session.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tp_proto::tunnel::Outcome;
use tp_transport::{
    Dialed, SpliceCounters,
    agents::{IncomingConnection, carry_on},
};

use super::{Agent, Agents};
use crate::intercepts::serving::Served;

/// Bounds the wait for the workstation's verdict: a version without intercepts never gives one.
const DIAL_TIMEOUT: Duration = Duration::from_secs(25);
/// A pod may be known to its node before the manager knows it: a watch may be seconds late. The client
/// waits meanwhile.
const POD_ATTEMPTS: usize = 50;
const POD_INTERVAL: Duration = Duration::from_millis(200);

impl Agents {
    /// Serves one connection, from its checks to its end.
    pub(super) async fn carry(&self, agent: &Agent, mut incoming: IncomingConnection) {
        let carried = (
            Arc::clone(&agent.carried).try_acquire_owned(),
            Arc::clone(&self.carried).try_acquire_owned(),
        );
        let (Ok(_of_agent), Ok(_of_all)) = carried else {
            let reason = "the traffic manager carries as many connections of this node as it can";
            return incoming.refuse(Outcome::Exhausted, reason).await;
        };
        let served = match self.check(agent, &incoming).await {
            Ok(served) => served,
            Err(reason) => {
                tracing::debug!(node = %agent.node, reason, "Intercepted connection refused");
                return incoming.refuse(Outcome::Prohibited, &reason).await;
            }
        };
        let calls = &self.intercepts.container_calls;
        if calls.has(incoming.from.client, served.session()) {
            return incoming.leave_to_container().await;
        }
        let _flow = match served.quota.carried() {
            Ok(permit) => permit,
            Err(reason) => return incoming.refuse(Outcome::Exhausted, &reason).await,
        };
        let from = incoming.from.clone();
        let opened = tokio::select! {
            opened = timeout(DIAL_TIMEOUT, served.peer.open_intercepted(&from)) => opened,
            // Dropping the other cancels the dial at the workstation.
            () = incoming.cancelled() => return,
        };
        let (outcome, reason) = match opened {
            Ok(Ok(Dialed::Connected(flow))) => {
                drop(served);
                let Ok(carrier) = incoming.accept().await else {
                    return;
                };
                let end = carry_on(carrier, flow, &SpliceCounters::default()).await;
                tracing::trace!(?end, "Intercepted connection ended");
                return;
            }
            Ok(Ok(Dialed::Refused { outcome, reason })) => (outcome, reason),
            Ok(Err(error)) => (Outcome::HostUnreachable, error.to_string()),
            Err(_) => (Outcome::TimedOut, "the workstation does not answer".into()),
        };
        incoming.refuse(outcome, &reason).await;
    }

    /// The session that the connection is for, if the agent may send it there.
    async fn check(
        &self,
        agent: &Agent,
        incoming: &IncomingConnection,
    ) -> Result<Arc<Served>, String> {
        let mut namespace = self.namespace_of(agent, incoming)?;
        for _ in 1..POD_ATTEMPTS {
            if namespace.is_some() {
                break;
            }
            sleep(POD_INTERVAL).await;
            namespace = self.namespace_of(agent, incoming)?;
        }
        let namespace = namespace.ok_or("the traffic manager does not know the pod")?;
        let from = &incoming.from;

        self.intercepts
            .holder(&from.intercept, &namespace, from.pod.port())
    }

    /// The namespace of the pod, which must be one of the agent's node. Its status may not have the
    /// address that was connected to, such as one of a further network: that is for its node to say.
    /// `None` if it is not known yet.
    fn namespace_of(
        &self,
        agent: &Agent,
        incoming: &IncomingConnection,
    ) -> Result<Option<String>, String> {
        let uid = incoming.pod.as_str();
        let from = &incoming.from;
        let model = self.model.read();
        let at_address = model.pod_at(from.pod.ip());
        let at_address = at_address.filter(|(_, pod)| !uid.is_empty() && *pod.uid == *uid);
        let with_uid = || {
            let namespace = self.intercepts.namespace_of(&from.intercept)?;
            model.pod_with_uid(&namespace, uid)
        };
        let Some((name, pod)) = at_address.or_else(with_uid) else {
            return Ok(None);
        };
        if *pod.node != *agent.node {
            return Err(format!("pod {} is not on node {}", name.name, agent.node));
        }

        Ok(Some(name.namespace.clone()))
    }
}

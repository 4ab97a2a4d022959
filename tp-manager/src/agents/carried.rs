//! Intercepted connections: the checks, and the way to the session.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tp_proto::tunnel::Outcome;
use tp_transport::{
    Dialed, SpliceCounters,
    agents::{IncomingConnection, carry_on},
};

use super::{Agent, Agents};

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
        let from = incoming.from.clone();
        if self.intercepts.namespace_of(&from.intercept).is_none() {
            return incoming.leave_to_container("the Intercept has ended").await;
        }
        let namespace = match self.check(agent, &incoming).await {
            Ok(namespace) => namespace,
            Err(reason) => {
                tracing::debug!(node = %agent.node, reason, "Intercepted connection refused");
                return incoming.refuse(Outcome::Prohibited, &reason).await;
            }
        };
        let holder = self
            .intercepts
            .holder(&from.intercept, &namespace, from.pod.port());
        let served = match holder {
            Ok(served) => served,
            // The client connected before this was so.
            Err(reason) => return incoming.leave_to_container(&reason).await,
        };
        let calls = &self.intercepts.container_calls;
        if calls.has(from.client, served.session()) {
            let reason = "the container serves what the handler calls";
            return incoming.leave_to_container(reason).await;
        }
        let _flow = match served.quota.carried() {
            Ok(permit) => permit,
            Err(reason) => return incoming.refuse(Outcome::Exhausted, &reason).await,
        };
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
            // The session has just left the Intercept, or has just gone.
            Ok(Ok(Dialed::Refused {
                outcome: Outcome::Prohibited,
                reason,
            })) => return incoming.leave_to_container(&reason).await,
            Ok(Err(error)) => return incoming.leave_to_container(&error.to_string()).await,
            Ok(Ok(Dialed::Refused { outcome, reason })) => (outcome, reason),
            Err(_) => (Outcome::TimedOut, "the workstation does not answer".into()),
        };
        incoming.refuse(outcome, &reason).await;
    }

    /// The namespace of the pod, if the agent may speak for it.
    async fn check(&self, agent: &Agent, incoming: &IncomingConnection) -> Result<String, String> {
        let mut namespace = self.namespace_of(agent, incoming)?;
        for _ in 1..POD_ATTEMPTS {
            if namespace.is_some() {
                break;
            }
            sleep(POD_INTERVAL).await;
            namespace = self.namespace_of(agent, incoming)?;
        }

        namespace.ok_or_else(|| "the traffic manager does not know the pod".to_owned())
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

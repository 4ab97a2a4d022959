//! One redirected pod, from the first port to the last.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tp_agent_api::{
    AgentRefusal, AgentReply, AgentRequest, LeaseState, MAX_NODES, PortCounters, PortLease,
    RedirectFds, RedirectedPort,
};
use tp_core::backoff::Backoff;
use tp_proto::agent::{PodPhase, PodReport};

use super::{
    earlier::{EarlierLooks, Looked},
    listeners::{Doorway, Listeners},
    ports::Ports,
    taken::AllTaken,
    verify::{Proof, verify},
};
use crate::{
    agentd::{Agentd, AgentdError},
    connections::{CarriedConnections, PortRoute},
    leases::{LeaseTable, boot_time},
    managers::Managers,
    plan::PodPlan,
    probes::{ContainerDoor, ProbedPort},
};

const COUNTERS_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// An older lease might be over when a test of it connects.
const TESTED_LEASE_NANOS: u64 = 2_000_000_000;

pub(super) struct PodTask {
    pub(super) uid: String,
    pub(super) agentd: Agentd,
    pub(super) managers: Arc<Managers>,
    pub(super) connections: Arc<CarriedConnections>,
    pub(super) taken: Arc<AllTaken>,
    pub(super) plan: watch::Receiver<PodPlan>,
}

/// A redirect in place.
struct PodRedirection {
    number: u64,
    connection: u64,
    agentd: Agentd,
    /// As it was made for.
    made_for: PodPlan,
    /// As `tp-agentd` has them.
    ports: Vec<RedirectedPort>,
    /// As `tp-agentd` has them.
    nodes: Vec<IpAddr>,
    indices: BTreeMap<u16, u32>,
    table: LeaseTable,
    doorway: Arc<Doorway>,
    listeners: Listeners,
    state: Ports,
    looks: EarlierLooks,
    work: JoinSet<Step>,
}

/// What was done meanwhile.
enum Step {
    Tested {
        port: u16,
        intercept: String,
        state: LeaseState,
        proof: Proof,
    },
    Counted(Result<Vec<PortCounters>, AgentdError>),
    Looked {
        /// The ports whose connections were to be ended.
        end: Vec<u16>,
        looked: Result<AgentReply, AgentdError>,
    },
}

/// Why a redirect ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It is not wanted any more, or another one is.
    Unwanted,
    /// It has gone already.
    Gone,
}

impl PodTask {
    /// Runs until the plan has no port any more.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, MAX_BACKOFF);
        loop {
            let plan = self.plan.borrow_and_update().clone();
            if plan.ports.is_empty() {
                break;
            }
            match self.redirect(&plan).await {
                Ok(redirection) => {
                    backoff.reset();
                    tracing::info!(pod = plan.name, "Pod is redirected");
                    self.tend(redirection).await;
                    tracing::info!(pod = plan.name, "Pod is not redirected any more");
                }
                Err(error) => {
                    tracing::info!(pod = plan.name, %error, "Pod is not redirected");
                    self.refuse(&plan, &error.to_string());
                    let pause = backoff.pause(fastrand::f64());
                    let changed = self
                        .plan
                        .wait_for(|it| it.ports.is_empty() || it.ids != plan.ids);
                    tokio::select! {
                        changed = changed => if changed.is_err() { break },
                        () = sleep(pause) => {}
                    }
                }
            }
        }
        self.managers.reports().set_pod(&self.uid, Vec::new());
    }

    fn refuse(&self, plan: &PodPlan, reason: &str) {
        let mut reports: BTreeMap<&str, PodReport> = BTreeMap::new();
        for port in plan.ports.values() {
            reports.entry(&port.intercept).or_insert_with(|| PodReport {
                intercept: port.intercept.clone(),
                pod: self.uid.clone(),
                name: plan.name.clone(),
                phase: PodPhase::Refused.into(),
                reason: reason.to_owned(),
                ports: Vec::new(),
            });
        }
        let reports = reports.into_values().collect();
        self.managers.reports().set_pod(&self.uid, reports);
    }

    async fn redirect(&self, plan: &PodPlan) -> Result<PodRedirection, AgentdError> {
        let wrong = |what: &str| AgentdError::Away(format!("it answers wrongly: {what}"));
        if plan.ids.containers.is_empty() {
            return Err(AgentdError::Refused {
                kind: AgentRefusal::NotFound,
                message: "no container of the pod runs: its status tells why".into(),
            });
        }
        let (ports, nodes) = (redirected_ports(plan, |_| false), probing_nodes(plan));
        let request = AgentRequest::Redirect {
            pod: plan.ids.clone(),
            ports: ports.clone(),
            nodes: nodes.clone(),
        };
        let replied = self.agentd.request(request).await?;
        let AgentReply::Redirected { redirect, leases } = replied.reply else {
            return Err(wrong("not about a redirect"));
        };
        let made = || -> std::io::Result<PodRedirection> {
            let fds = RedirectFds::from_fds(replied.fds)
                .ok_or_else(|| std::io::Error::other("it gives other descriptors"))?;
            let doorway = Doorway::new(self.uid.clone(), Arc::clone(&self.connections));
            let doorway = Arc::new(doorway);
            let listeners = [Some(fds.listener4), fds.listener6];
            let listeners = listeners.into_iter().flatten();

            Ok(PodRedirection {
                number: redirect,
                connection: replied.connection,
                agentd: self.agentd.clone(),
                made_for: plan.clone(),
                ports,
                nodes,
                indices: indices(&leases),
                table: LeaseTable::map(&fds.leases)?,
                listeners: Listeners::start(listeners, &doorway)?,
                doorway,
                state: Ports::default(),
                looks: EarlierLooks::new(self.uid.clone(), Arc::clone(&self.taken)),
                work: JoinSet::new(),
            })
        };
        match made() {
            Ok(made) => Ok(made),
            Err(error) => {
                let release = AgentRequest::Release { redirect };
                self.agentd.request(release).await?;
                Err(wrong(&error.to_string()))
            }
        }
    }

    /// Keeps a redirect for as long as it is wanted.
    async fn tend(&mut self, mut redirection: PodRedirection) {
        let mut tick = interval(COUNTERS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports = Vec::new();
        let end = loop {
            let plan = self.plan.borrow_and_update().clone();
            if let ControlFlow::Break(end) = self.renew(&mut redirection, &plan).await {
                break end;
            }
            redirection.look(&self.agentd, &plan);
            let looks = &redirection.looks;
            reports = redirection.state.reports(&self.uid, &plan, looks, &reports);
            self.managers.reports().set_pod(&self.uid, reports.clone());
            tokio::select! {
                changed = self.plan.changed() => if changed.is_err() { break End::Unwanted },
                () = self.agentd.ended(redirection.connection) => break End::Gone,
                Some(Ok(step)) = redirection.work.join_next() => {
                    if let ControlFlow::Break(end) = redirection.take(step, &self.plan.borrow()) {
                        break end;
                    }
                }
                _ = tick.tick() => redirection.count(&self.agentd),
            }
        };
        if end == End::Unwanted {
            let redirect = redirection.number;
            let release = AgentRequest::Release { redirect };
            if let Err(error) = self.agentd.request(release).await {
                tracing::debug!(%error, "Redirect was gone before its release");
            }
        }
        redirection.listeners.close().await;
    }

    /// Sets ports, leases and routes as planned, and tests what is not proven.
    async fn renew(&self, redirection: &mut PodRedirection, plan: &PodPlan) -> ControlFlow<End> {
        if plan.ports.is_empty() || is_another_sandbox(&redirection.made_for, plan) {
            return ControlFlow::Break(End::Unwanted);
        }
        let is_crowded = |port| redirection.doorway.places().is_crowded(port);
        let ports = redirected_ports(plan, is_crowded);
        let nodes = probing_nodes(plan);
        if ports != redirection.ports || nodes != redirection.nodes {
            // A port whose probes the kernel spares while it is refused: the one ends after the other,
            // and begins before it.
            redirection.renew_leases(plan, |state| state != LeaseState::Refuse);
            let request = AgentRequest::Ports {
                redirect: redirection.number,
                ports: ports.clone(),
                nodes: Some(nodes.clone()),
            };
            match self.agentd.request(request).await.map(|it| it.reply) {
                Ok(AgentReply::Changed { leases }) => redirection.indices = indices(&leases),
                Ok(_) => return ControlFlow::Break(End::Unwanted),
                Err(AgentdError::Away(_)) => return ControlFlow::Break(End::Gone),
                Err(AgentdError::Refused { message, .. }) => {
                    tracing::warn!(pod = plan.name, message, "Ports of a pod are not changed");
                    return ControlFlow::Break(End::Unwanted);
                }
            }
            redirection.ports = ports;
            redirection.nodes = nodes;
        }
        redirection.apply(plan);

        ControlFlow::Continue(())
    }
}

impl PodRedirection {
    fn renew_leases(&self, plan: &PodPlan, is_due: impl Fn(LeaseState) -> bool) {
        for (number, port) in &plan.ports {
            let state = self.state.state(*number, port);
            if let Some(index) = self.indices.get(number)
                && is_due(state)
            {
                self.table.renew(*index, state, port.renewed);
            }
        }
    }

    fn apply(&mut self, plan: &PodPlan) {
        self.state.follow(plan);
        let nodes: Arc<[IpAddr]> = plan.nodes.clone().into();
        let routes = plan.ports.iter().map(|(number, port)| {
            let container = ContainerDoor {
                agentd: self.agentd.clone(),
                redirect: self.number,
                connection: self.connection,
                counts: self.state.probes(*number),
            };
            let route = PortRoute {
                intercept: port.intercept.clone(),
                manager: port.manager.clone(),
                probes: port.http_probed.then(|| ProbedPort {
                    nodes: Arc::clone(&nodes),
                    container: container.clone(),
                }),
                container,
            };
            (*number, route)
        });
        self.doorway.set_routes(routes.collect());
        self.renew_leases(plan, |_| true);
        let is_spared = |port: u16| self.ports.iter().any(|it| it.port == port && it.probed);
        for (number, port) in &plan.ports {
            let state = self.state.state(*number, port);
            let is_fresh = boot_time().saturating_sub(port.renewed) < TESTED_LEASE_NANOS;
            let target = plan.addresses.first().copied().filter(|_| is_fresh);
            if let Some(target) = target
                && self.state.begin_test(*number, state)
            {
                let target = SocketAddr::new(target, *number);
                let (number, intercept) = (*number, port.intercept.clone());
                let exempt = match is_spared(number) {
                    true => plan.nodes.clone(),
                    false => Vec::new(),
                };
                let doorway = Arc::clone(&self.doorway);
                self.work.spawn(async move {
                    Step::Tested {
                        port: number,
                        intercept,
                        state,
                        proof: verify(doorway, target, state, exempt).await,
                    }
                });
            }
        }
    }

    fn count(&mut self, agentd: &Agentd) {
        let counters = AgentRequest::Counters {
            redirect: self.number,
        };
        let agentd = agentd.clone();
        self.work.spawn(async move {
            let counted = agentd.request(counters).await;
            Step::Counted(counted.map(|replied| match replied.reply {
                AgentReply::Counters { ports } => ports,
                _ => Vec::new(),
            }))
        });
    }

    /// Looks at the connections that the container has already, and ends them, when it is time.
    fn look(&mut self, agentd: &Agentd, plan: &PodPlan) {
        let Self { looks, state, .. } = self;
        looks.follow(plan, |port, planned| state.state(port, planned));
        let Some(end) = looks.begin(|port| state.has_taken(port)) else {
            return;
        };
        let request = AgentRequest::Earlier {
            redirect: self.number,
            end: end.clone(),
        };
        let agentd = agentd.clone();
        self.work.spawn(async move {
            let looked = agentd.request(request).await;
            Step::Looked {
                end,
                looked: looked.map(|replied| replied.reply),
            }
        });
    }

    fn take(&mut self, step: Step, plan: &PodPlan) -> ControlFlow<End> {
        match step {
            Step::Tested {
                port,
                intercept,
                state,
                proof,
            } => {
                let planned = plan.ports.get(&port);
                let holds = planned.is_some_and(|planned| planned.state == state);
                tracing::debug!(pod = plan.name, port, ?proof, holds, "Redirect was tested");
                self.state.end_test(port, &intercept, proof, holds);
            }
            Step::Counted(Ok(counters)) => self.state.count(&counters),
            Step::Looked { end, looked } => match looked {
                Ok(AgentReply::Earlier {
                    ports: seen,
                    obstacle,
                    more: has_more,
                }) => self.looks.end(
                    &end,
                    Looked {
                        seen,
                        obstacle,
                        has_more,
                    },
                ),
                Ok(_) => return ControlFlow::Break(End::Unwanted),
                Err(AgentdError::Away(_)) => return ControlFlow::Break(End::Gone),
                // They go on to the container, of which nothing can be said.
                Err(AgentdError::Refused { message, .. }) => {
                    tracing::debug!(pod = plan.name, message, "Earlier connections not known");
                    self.looks.fail(&end, message);
                }
            },
            Step::Counted(Err(error)) => {
                tracing::debug!(%error, "Counters are not known");
                return ControlFlow::Break(match error {
                    AgentdError::Away(_) => End::Gone,
                    // Released, should it be there.
                    AgentdError::Refused { .. } => End::Unwanted,
                });
            }
        }

        ControlFlow::Continue(())
    }
}

/// Where probes could not be accepted, to be told by what they ask, the kernel leaves all connections
/// from the node to the container: on a port that is refused, or has too many connections.
fn redirected_ports(plan: &PodPlan, is_crowded: impl Fn(u16) -> bool) -> Vec<RedirectedPort> {
    let ports = plan.ports.iter().map(|(port, planned)| {
        let is_not_accepted = is_crowded(*port) || planned.state == LeaseState::Refuse;
        RedirectedPort {
            port: *port,
            probed: planned.probed || (planned.http_probed && is_not_accepted),
        }
    });

    ports.collect()
}

fn probing_nodes(plan: &PodPlan) -> Vec<IpAddr> {
    plan.nodes.iter().copied().take(MAX_NODES).collect()
}

fn indices(leases: &[PortLease]) -> BTreeMap<u16, u32> {
    leases.iter().map(|it| (it.port, it.index)).collect()
}

/// Returns whether the pod may have got another network namespace: another address, or containers of
/// which none was there before. While none runs, the old one is kept.
fn is_another_sandbox(made_for: &PodPlan, plan: &PodPlan) -> bool {
    let (before, containers) = (&made_for.ids.containers, &plan.ids.containers);
    let are_others = !containers.is_empty() && !containers.iter().any(|id| before.contains(id));

    are_others || made_for.addresses != plan.addresses
}

#[cfg(test)]
mod tests {
    use tp_agent_api::PodIds;

    use super::*;

    fn plan(containers: &[&str], address: &str) -> PodPlan {
        PodPlan {
            name: "web-0".into(),
            ids: PodIds {
                uid: "1".into(),
                containers: containers.iter().map(|id| (*id).into()).collect(),
                addresses: Vec::new(),
            },
            addresses: vec![address.parse().unwrap()],
            nodes: Vec::new(),
            ports: BTreeMap::new(),
        }
    }

    #[test]
    fn a_pod_whose_containers_are_down_keeps_its_redirect() {
        let made_for = plan(&["a", "b"], "10.244.1.7");
        let is_another = |containers: &[&str], address| {
            is_another_sandbox(&made_for, &plan(containers, address))
        };

        assert!(!is_another(&["b", "c"], "10.244.1.7"));
        assert!(!is_another(&[], "10.244.1.7"));
        assert!(is_another(&["c"], "10.244.1.7"));
        assert!(is_another(&["a", "b"], "10.244.1.8"));
    }
}

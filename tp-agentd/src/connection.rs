//! One connection: requests in, replies out, and the redirects that live as long as it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use tp_agent_api::{
    AgentRefusal, AgentReply, AgentRequest, MAX_CONTAINERS, MAX_NODES, MAX_PORTS, MAX_REDIRECTS,
    PROTOCOL, PodIds, PortCounters, PortLease, RedirectFds, RedirectedPort,
};
use tp_ebpf_loader::{PodCounter, PodPortCounters, PodRedirect};
use tp_packet::{MAX_PACKET, receive, send};

use crate::{
    VERSION,
    cgroup::{ContainerId, PodUid},
    environ,
    netns::PodNetns,
    pod_error::PodError,
    pods::Processes,
};

pub(crate) struct AgentConnection {
    socket: OwnedFd,
    processes: Arc<Processes>,
    redirects: BTreeMap<u64, Redirect>,
    next_redirect: u64,
}

struct Redirect {
    // First of all the program is detached.
    program: PodRedirect,
    netns: PodNetns,
}

/// A reply and what it carries.
struct Answer(AgentReply, Vec<OwnedFd>);

impl AgentConnection {
    pub(crate) fn new(socket: OwnedFd, processes: Arc<Processes>) -> Self {
        Self {
            socket,
            processes,
            redirects: BTreeMap::new(),
            next_redirect: 1,
        }
    }

    /// Serves until the agent is gone.
    pub(crate) fn serve(mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let packet = receive(&self.socket, &mut buffer)?;
            if packet.bytes.is_empty() {
                return Ok(());
            }
            let request = if packet.is_truncated {
                Err(PodError::invalid(
                    "the request is larger than a packet may be",
                ))
            } else {
                serde_json::from_slice(packet.bytes).map_err(|error| {
                    PodError::invalid(format!(
                        "the request cannot be read; are tp-agent and tp-agentd of one image? {error}"
                    ))
                })
            };
            let Answer(reply, fds) = request
                .and_then(|request| self.handle(request))
                .unwrap_or_else(|error| {
                    tracing::debug!(reason = %error, "Request refused");
                    Answer(error.into_reply(), Vec::new())
                });
            let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
            send(&self.socket, &reply, &fds)?;
        }
    }

    fn handle(&mut self, request: AgentRequest) -> Result<Answer, PodError> {
        let reply = match request {
            AgentRequest::Hello { version, protocol } => {
                tracing::debug!(%version, protocol, "Agent says hello");
                AgentReply::Hello {
                    version: VERSION.to_owned(),
                    protocol: PROTOCOL,
                }
            }
            AgentRequest::Redirect { pod, ports, nodes } => {
                return self.redirect(&pod, &ports, &nodes);
            }
            AgentRequest::Ports { redirect, ports } => {
                let ports = checked(&ports)?;
                let leases = set_ports(&mut self.find(redirect)?.program, &ports)?;
                AgentReply::Changed { leases }
            }
            AgentRequest::Release { redirect } => {
                self.find(redirect)?;
                self.redirects.remove(&redirect);
                AgentReply::Done
            }
            AgentRequest::Counters { redirect } => {
                let counters = self.find(redirect)?.program.counters()?;
                AgentReply::Counters {
                    ports: counters.iter().map(counted).collect(),
                }
            }
            AgentRequest::Socket { redirect, ipv6 } => {
                let socket = self.find(redirect)?.netns.socket(ipv6)?;
                return Ok(Answer(AgentReply::Socket, vec![socket]));
            }
            AgentRequest::Environ { uid, container } => {
                let environ = self
                    .processes
                    .environ_of(&parsed_uid(&uid)?, &parsed_id(&container)?)?;
                let intact = environ::is_intact(&environ);
                let file = environ::sealed(&environ)?;
                return Ok(Answer(AgentReply::Environ { intact }, vec![file]));
            }
        };

        Ok(Answer(reply, Vec::new()))
    }

    fn redirect(
        &mut self,
        pod: &PodIds,
        ports: &[RedirectedPort],
        nodes: &[IpAddr],
    ) -> Result<Answer, PodError> {
        let ports = checked(ports)?;
        if nodes.len() > MAX_NODES {
            return Err(PodError::invalid(format!(
                "a node has at most {MAX_NODES} addresses"
            )));
        }
        if pod.containers.is_empty() || pod.containers.len() > MAX_CONTAINERS {
            return Err(PodError::invalid(format!(
                "a request names one to {MAX_CONTAINERS} containers"
            )));
        }
        if self.redirects.len() >= MAX_REDIRECTS {
            return Err(PodError::unsupported(format!(
                "{MAX_REDIRECTS} pods of this node are redirected, as many as there may be: end \
                 another intercept first"
            )));
        }
        let uid = parsed_uid(&pod.uid)?;
        let containers = pod.containers.iter().map(|id| parsed_id(id));
        let containers = containers.collect::<Result<Vec<_>, _>>()?;
        let netns = self.processes.netns_of(&uid, &containers)?;
        if self
            .redirects
            .values()
            .any(|it| it.netns.id() == netns.id())
        {
            return Err(PodError::invalid(
                "the pod is redirected already: change its ports",
            ));
        }

        let listeners = netns.listeners()?;
        let v6 = listeners.v6.as_ref().map(OwnedFd::as_fd);
        let mut program = PodRedirect::attach(netns.as_fd(), listeners.v4.as_fd(), v6)?;
        program.set_nodes(nodes)?;
        let leases = set_ports(&mut program, &ports)?;
        let fds = RedirectFds {
            leases: program.leases()?,
            listener4: listeners.v4,
            listener6: listeners.v6,
        };
        let redirect = self.next_redirect;
        self.next_redirect += 1;
        self.redirects.insert(redirect, Redirect { program, netns });
        tracing::info!(redirect, "Pod is redirected");

        Ok(Answer(
            AgentReply::Redirected { redirect, leases },
            fds.into_fds(),
        ))
    }

    fn find(&mut self, redirect: u64) -> Result<&mut Redirect, PodError> {
        self.redirects
            .get_mut(&redirect)
            .ok_or_else(|| PodError::invalid("this connection has no such redirect"))
    }
}

/// Each port once, with whether it is probed.
fn checked(ports: &[RedirectedPort]) -> Result<BTreeMap<u16, bool>, PodError> {
    if ports.len() > MAX_PORTS {
        return Err(PodError::invalid(format!(
            "at most {MAX_PORTS} ports of a pod are redirected"
        )));
    }
    let numbers: BTreeSet<u16> = ports.iter().map(|port| port.port).collect();
    if numbers.len() != ports.len() || numbers.contains(&0) {
        return Err(PodError::invalid("a port is named twice, or is 0"));
    }

    Ok(ports.iter().map(|port| (port.port, port.probed)).collect())
}

fn set_ports(
    program: &mut PodRedirect,
    ports: &BTreeMap<u16, bool>,
) -> Result<Vec<PortLease>, PodError> {
    let leases = program
        .set_ports(ports)?
        .ok_or_else(|| PodError::new(AgentRefusal::Invalid, "there are too many ports"))?;

    Ok(leases
        .into_iter()
        .map(|(port, index)| PortLease { port, index })
        .collect())
}

fn counted(counters: &PodPortCounters) -> PortCounters {
    PortCounters {
        port: counters.port,
        redirected: counters.get(PodCounter::Workstation),
        lease_over: counters.get(PodCounter::LeaseOver),
        container: counters.get(PodCounter::ClosedToContainer),
        exempt: counters.get(PodCounter::Exempt),
        probes: counters.get(PodCounter::Probe),
        refused: counters.get(PodCounter::Refused),
    }
}

fn parsed_uid(text: &str) -> Result<PodUid, PodError> {
    PodUid::parse(text).ok_or_else(|| {
        PodError::invalid("the UID of the pod is neither a UID nor the hash of a static pod")
    })
}

fn parsed_id(text: &str) -> Result<ContainerId, PodError> {
    ContainerId::parse(text)
        .ok_or_else(|| PodError::invalid("the id of a container is not 64 hexadecimal digits"))
}

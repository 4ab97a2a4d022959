//! One connection: requests in, replies out, and the redirects that live as long as it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use tp_agent_api::{
    AgentRefusal, AgentReply, AgentRequest, MAX_CONTAINERS, MAX_NODES, MAX_POD_ADDRESSES,
    MAX_PORTS, PROTOCOL, PodIds, PortCounters, PortLease, RedirectFds, RedirectedPort,
};
use tp_ebpf_loader::{PodCounter, PodPortCounters, PodRedirect};
use tp_packet::{MAX_PACKET, receive, send};

use crate::{
    VERSION,
    cgroup::{ContainerId, PodUid},
    earlier::{self, EarlierLook, RedirectRules},
    environ,
    handouts::Handouts,
    netns::PodNetns,
    pod_error::PodError,
    pods::Processes,
    redirects::{AllRedirects, OwnRedirects},
};

/// Environments at once, each up to 256 KiB of our memory for as long as the agent holds it.
const ENVIRONS: u32 = 64;
const ENVIRON_INTERVAL: Duration = Duration::from_millis(250);
/// Sockets at once: one for each connection that goes on to the container.
const SOCKETS: u32 = 1024;
const SOCKET_INTERVAL: Duration = Duration::from_millis(1);
/// Looks at the connections of a pod, each of which walks through the machine's table of them.
const LOOKS: u32 = 512;
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) struct AgentConnection {
    // First of all the redirects end.
    redirects: OwnRedirects,
    socket: OwnedFd,
    processes: Arc<Processes>,
    /// The protocol that the agent speaks, once it has said so.
    spoken: Option<u32>,
    environs: Handouts,
    sockets: Handouts,
    looks: Handouts,
}

/// A reply and what it carries.
struct Answer(AgentReply, Vec<OwnedFd>);

impl AgentConnection {
    pub(crate) fn new(
        socket: OwnedFd,
        processes: Arc<Processes>,
        redirects: Arc<AllRedirects>,
    ) -> Self {
        let now = Instant::now();

        Self {
            redirects: OwnRedirects::new(redirects),
            socket,
            processes,
            spoken: None,
            environs: Handouts::new(ENVIRONS, ENVIRON_INTERVAL, now),
            sockets: Handouts::new(SOCKETS, SOCKET_INTERVAL, now),
            looks: Handouts::new(LOOKS, LOOK_INTERVAL, now),
        }
    }

    /// Serves until the agent is gone, or sends descriptors, which no request carries. They are returned:
    /// to close them may block for as long as whoever sent them likes.
    pub(crate) fn serve(mut self) -> io::Result<Vec<OwnedFd>> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let packet = receive(&self.socket, &mut buffer)?;
            if packet.bytes.is_empty() || !packet.fds.is_empty() {
                return Ok(packet.fds);
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
        if !matches!(request, AgentRequest::Hello { .. }) {
            self.check_protocol()?;
        }
        let reply = match request {
            AgentRequest::Hello { version, protocol } => {
                tracing::debug!(%version, protocol, "Agent says hello");
                self.spoken = Some(protocol);
                AgentReply::Hello {
                    version: VERSION.to_owned(),
                    protocol: PROTOCOL,
                }
            }
            AgentRequest::Redirect { pod, ports, nodes } => {
                return self.redirect(&pod, &ports, &nodes);
            }
            AgentRequest::Ports {
                redirect,
                ports,
                nodes,
            } => {
                let ports = checked(&ports)?;
                check_nodes(nodes.as_deref().unwrap_or_default())?;
                let leases = self.redirects.with(redirect, |it| {
                    it.program.set_own(&it.netns.addresses()?)?;
                    if let Some(nodes) = nodes {
                        it.program.set_nodes(&nodes)?;
                        it.rules.nodes = nodes;
                    }
                    let leases = set_ports(&mut it.program, &ports)?;
                    it.rules.ports = ports;
                    Ok(leases)
                })?;
                AgentReply::Changed { leases }
            }
            AgentRequest::Release { redirect } => {
                self.redirects.release(redirect)?;
                AgentReply::Done
            }
            AgentRequest::Counters { redirect } => {
                let counters = self
                    .redirects
                    .with(redirect, |it| Ok(it.program.counters()?))?;
                AgentReply::Counters {
                    ports: counters.iter().map(counted).collect(),
                }
            }
            AgentRequest::Earlier { redirect, end } => self.earlier(redirect, &end)?,
            AgentRequest::Socket { redirect, ipv6 } => {
                if !self.sockets.take(Instant::now()) {
                    return Err(too_often("sockets", SOCKETS, SOCKET_INTERVAL));
                }
                let socket = self.redirects.with(redirect, |it| it.netns.socket(ipv6))?;
                return Ok(Answer(AgentReply::Socket, vec![socket]));
            }
            AgentRequest::Environ { uid, container } => {
                if !self.environs.take(Instant::now()) {
                    return Err(too_often("environments", ENVIRONS, ENVIRON_INTERVAL));
                }
                let environ = self
                    .processes
                    .environ_of(&parsed_uid(&uid)?, &parsed_id(&container)?)?;
                let intact = environ::is_intact(&environ.bytes, environ.placed);
                let file = environ::sealed(&environ.bytes)?;
                return Ok(Answer(AgentReply::Environ { intact }, vec![file]));
            }
        };

        Ok(Answer(reply, Vec::new()))
    }

    fn earlier(&mut self, redirect: u64, end: &[u16]) -> Result<AgentReply, PodError> {
        if !self.looks.take(Instant::now()) {
            return Err(too_often("looks at connections", LOOKS, LOOK_INTERVAL));
        }
        // Only the agent that asks waits for it, and not the others' redirects.
        let (netns, rules) = self
            .redirects
            .with(redirect, |it| Ok((it.netns.again()?, it.rules.clone())))?;
        let EarlierLook {
            ports,
            obstacle,
            has_more: more,
        } = earlier::look(&netns, &rules, end)?;

        Ok(AgentReply::Earlier {
            ports,
            obstacle,
            more,
        })
    }

    fn check_protocol(&self) -> Result<(), PodError> {
        match self.spoken {
            Some(PROTOCOL) => Ok(()),
            Some(other) => Err(PodError::invalid(format!(
                "tp-agent speaks protocol {other} and tp-agentd {PROTOCOL}: both must be of one image"
            ))),
            None => Err(PodError::invalid("the first request is to be a hello")),
        }
    }

    fn redirect(
        &self,
        pod: &PodIds,
        ports: &[RedirectedPort],
        nodes: &[IpAddr],
    ) -> Result<Answer, PodError> {
        let ports = checked(ports)?;
        check_nodes(nodes)?;
        if pod.containers.is_empty() || pod.containers.len() > MAX_CONTAINERS {
            return Err(PodError::invalid(format!(
                "a request names one to {MAX_CONTAINERS} containers"
            )));
        }
        if pod.addresses.len() > MAX_POD_ADDRESSES {
            return Err(PodError::invalid(format!(
                "a pod has at most {MAX_POD_ADDRESSES} addresses"
            )));
        }
        let uid = parsed_uid(&pod.uid)?;
        let containers = pod.containers.iter().map(|id| parsed_id(id));
        let containers = containers.collect::<Result<Vec<_>, _>>()?;
        let netns = self.processes.netns_of(&uid, &containers, &pod.addresses)?;

        let rules = RedirectRules {
            ports: ports.clone(),
            nodes: nodes.to_vec(),
        };
        let attach = |netns: &PodNetns| attached(netns, &ports, nodes);
        let (redirect, (leases, fds)) = self.redirects.add(netns, rules, attach)?;
        tracing::info!(redirect, "Pod is redirected");

        Ok(Answer(
            AgentReply::Redirected { redirect, leases },
            fds.into_fds(),
        ))
    }
}

type Attached = (PodRedirect, (Vec<PortLease>, RedirectFds));

fn attached(
    netns: &PodNetns,
    ports: &BTreeMap<u16, bool>,
    nodes: &[IpAddr],
) -> Result<Attached, PodError> {
    let listeners = netns.listeners(ports)?;
    let v6 = listeners.v6.as_ref().map(OwnedFd::as_fd);
    let mut program = PodRedirect::attach(netns.as_fd(), listeners.v4.as_fd(), v6)?;
    program.set_own(&netns.addresses()?)?;
    program.set_nodes(nodes)?;
    let leases = set_ports(&mut program, ports)?;
    let fds = RedirectFds {
        leases: program.leases()?,
        listener4: listeners.v4,
        listener6: listeners.v6,
    };

    Ok((program, (leases, fds)))
}

fn check_nodes(nodes: &[IpAddr]) -> Result<(), PodError> {
    if nodes.len() > MAX_NODES {
        return Err(PodError::invalid(format!(
            "a node has at most {MAX_NODES} addresses"
        )));
    }

    Ok(())
}

fn too_often(what: &str, burst: u32, interval: Duration) -> PodError {
    PodError::new(
        AgentRefusal::Failed,
        format!(
            "too many {what} were asked for, of which there are {burst} at once and one each \
             {interval:?}: ask again later"
        ),
    )
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
        elsewhere: counters.get(PodCounter::Elsewhere),
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

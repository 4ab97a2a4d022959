//! What a user wants to intercept: the request's words checked, then completed by the manager's answer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};
use tp_core::intercept::{
    ports::{self, PortMapping},
    workload::{WorkloadKind, WorkloadName},
};
use tp_proto::{
    crd::{
        ALL_PODS, INTERCEPT, InterceptPort, InterceptSpec, MAX_INTERCEPT_PORTS, SessionReference,
        UserInfo, WorkloadReference,
    },
    fault::{Fault, FaultKind},
    local::InterceptRequest,
    tunnel::{FindWorkloadRequest, FindWorkloadResponse, FoundPort, ReadyPod, TakeOverRequest},
};
use tp_transport::SessionRef;

use super::{callers::ProcessId, listening::ListeningSockets};

/// Bounds the system's resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A request whose words are understood.
#[derive(Debug, Clone)]
pub(super) struct CheckedRequest {
    /// What the intercept is called at this workstation.
    pub(super) name: String,
    pub(super) find: FindWorkloadRequest,
    address: String,
    replica: String,
    /// The pod that was named as the workload.
    pod: Option<String>,
    probes: String,
    when_down: String,
    take_over: bool,
    proxy_protocol: bool,
    take_open: bool,
    no_local_shortcut: bool,
    /// The process that runs the handler.
    pub(super) command_of: Option<u32>,
    /// The processes that the caller descends from.
    pub(super) asked_from: Arc<[ProcessId]>,
}

/// All that an Intercept object is made of, and what only the workstation knows.
#[derive(Debug)]
pub(super) struct WantedIntercept {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) kind: String,
    pub(super) workload: String,
    pub(super) ports: Vec<WantedPorts>,
    replica: String,
    probes: String,
    pub(super) when_down: String,
    /// Pods that were Ready when it was asked for.
    pub(super) ready: u32,
    /// Those of them that the manager has named.
    pub(super) pods: Vec<ReadyPod>,
    /// Those of others end for it.
    pub(super) take_over: bool,
    /// Local processes are told the client by a header of the PROXY protocol.
    pub(super) proxy_protocol: bool,
    /// Connections that the pods have already end.
    pub(super) take_open: bool,
    /// Calls of this workstation go through the cluster as well.
    pub(super) no_local_shortcut: bool,
    /// The process that runs the handler, as far as it is known.
    pub(super) command_of: Option<u32>,
    /// The processes that the `tp` descends from which asked for it.
    pub(super) asked_from: Arc<[ProcessId]>,
    /// Those that went to the local process directly.
    pub(super) local_calls: AtomicU64,
    /// Those whose client the local process was not shown.
    pub(super) unshown: Arc<AtomicU64>,
}

/// A port of the pods, and where its connections go.
#[derive(Debug)]
pub(super) struct WantedPorts {
    pub(super) port: u16,
    pub(super) found: FoundPort,
    pub(super) local: LocalAddresses,
}

/// Where a local process may listen: of several, at the first at which something does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalAddresses {
    first: SocketAddr,
    second: Option<SocketAddr>,
}

impl LocalAddresses {
    /// The address to connect to, and whether something listens there. Not known is as if it did.
    pub(super) fn pick(&self, listening: Option<&ListeningSockets>) -> (SocketAddr, bool) {
        let listens = |address: SocketAddr| {
            !address.ip().is_loopback() || listening.is_none_or(|it| it.has(address))
        };
        if listens(self.first) {
            return (self.first, true);
        }

        self.second
            .filter(|second| listens(*second))
            .map_or((self.first, false), |second| (second, true))
    }
}

fn usage(message: impl ToString) -> Fault {
    Fault::new(FaultKind::Usage, message.to_string())
}

impl CheckedRequest {
    /// Checks what can be checked without asking anybody.
    pub(super) fn of(request: InterceptRequest, connected: &str) -> Result<Self, Fault> {
        let workload: WorkloadName = request.workload.parse().map_err(usage)?;
        let mappings: Vec<PortMapping> = request
            .ports
            .iter()
            .map(|port| port.parse())
            .collect::<Result<_, _>>()
            .map_err(usage)?;
        ports::check_all(&mappings).map_err(usage)?;
        if mappings.len() > MAX_INTERCEPT_PORTS {
            return Err(usage(format!(
                "--port is given {} times: an intercept has at most {MAX_INTERCEPT_PORTS} ports, make several \
                 with --name",
                mappings.len()
            )));
        }
        let or = |given: String, default: &str| match given.is_empty() {
            true => default.to_owned(),
            false => given,
        };
        let replica = or(request.replica, ALL_PODS);
        let of_pods = replica.parse::<WorkloadName>();
        if of_pods.is_err() || replica.contains('/') {
            return Err(usage(format!(
                "--replica {replica:?} is neither \"all\" nor the name of a pod"
            )));
        }
        if let Some(WorkloadKind::Pod) = workload.kind
            && replica != ALL_PODS
            && replica != workload.name
        {
            return Err(usage(format!(
                "--replica {replica} is not the pod {}: leave --replica out",
                workload.name
            )));
        }
        let probes = or(request.probes, "container");
        one_of("--probes", &probes, ["container", "local"])?;
        let when_down = or(request.when_down, "refuse");
        one_of("--when-down", &when_down, ["refuse", "container"])?;
        let name = or(request.name, &workload.name);
        if name.len() > 253 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(usage(format!(
                "--name {name:?} is no name of an intercept: it has at most 253 characters, none of \
                 them a space"
            )));
        }

        Ok(Self {
            name,
            find: FindWorkloadRequest {
                namespace: or(request.namespace, connected),
                workload: request.workload,
                service: request.service,
                container: request.container,
                ports: request.ports,
            },
            address: request.address,
            replica,
            pod: (workload.kind == Some(WorkloadKind::Pod)).then_some(workload.name),
            probes,
            when_down,
            take_over: request.take_over,
            proxy_protocol: request.proxy_protocol,
            take_open: request.take_open,
            no_local_shortcut: request.no_local_shortcut,
            command_of: None,
            asked_from: Arc::default(),
        })
    }

    /// The addresses of this machine, or of another one, that `--address` names.
    pub(super) async fn resolve(&self) -> Result<(IpAddr, Option<IpAddr>), Fault> {
        let address = self.address.trim_matches(['[', ']']);
        if address.is_empty() || address == "localhost" {
            return Ok((Ipv4Addr::LOCALHOST.into(), Some(Ipv6Addr::LOCALHOST.into())));
        }
        if let Ok(ip) = address.parse() {
            return Ok((ip, None));
        }
        let unknown = |why: &str| {
            let message = format!("--address {address} does not resolve: {why}");
            Fault::new(FaultKind::Config, message)
        };
        // A port must stand there; each port of the intercept has its own.
        match timeout(RESOLVE_TIMEOUT, lookup_host((address, 0))).await {
            Ok(Ok(mut found)) => match found.next() {
                Some(first) => Ok((first.ip(), None)),
                None => Err(unknown("it has no address")),
            },
            Ok(Err(error)) => Err(unknown(&error.to_string())),
            Err(_) => Err(unknown("no answer in time")),
        }
    }

    /// Completes the request by what the manager has found.
    pub(super) fn complete(
        self,
        found: FindWorkloadResponse,
        (first, second): (IpAddr, Option<IpAddr>),
    ) -> Result<WantedIntercept, Fault> {
        let port = |port: FoundPort| {
            let number = |number: u32| u16::try_from(number).ok().filter(|it| *it != 0);
            let local = number(port.local)?;
            Some(WantedPorts {
                port: number(port.port)?,
                found: port,
                local: LocalAddresses {
                    first: SocketAddr::new(first, local),
                    second: second.map(|second| SocketAddr::new(second, local)),
                },
            })
        };
        let ports: Option<Vec<WantedPorts>> = found.ports.into_iter().map(port).collect();
        let ports = ports.filter(|ports| (1..=MAX_INTERCEPT_PORTS).contains(&ports.len()));
        let Some(ports) = ports else {
            let message = "the traffic manager answers with ports that this tp does not understand: \
                           use the same version of both";
            return Err(Fault::new(FaultKind::Failed, message));
        };
        let mut locals = BTreeMap::new();
        for port in &ports {
            if let Some(other) = locals.insert(port.port, port.found.local) {
                return Err(usage(format!(
                    "--port {other} and --port {} mean the same port {} of {}: leave one out",
                    port.found.local, port.port, found.name
                )));
            }
        }

        // Who names a pod of a workload means that pod.
        let replica = match self.pod {
            Some(pod) if found.kind != "Pod" && self.replica == ALL_PODS => pod,
            _ => self.replica,
        };

        Ok(WantedIntercept {
            name: self.name,
            namespace: self.find.namespace,
            ready: match replica.as_str() {
                ALL_PODS => found.ready,
                _ => found.ready.min(1),
            },
            replica,
            kind: found.kind,
            workload: found.name,
            ports,
            probes: self.probes,
            when_down: self.when_down,
            take_over: self.take_over,
            proxy_protocol: self.proxy_protocol,
            take_open: self.take_open,
            pods: found.pods,
            no_local_shortcut: self.no_local_shortcut,
            command_of: self.command_of,
            asked_from: self.asked_from,
            local_calls: AtomicU64::new(0),
            unshown: Arc::default(),
        })
    }
}

fn one_of(flag: &str, value: &str, choices: [&str; 2]) -> Result<(), Fault> {
    if choices.contains(&value) {
        return Ok(());
    }
    let [one, other] = choices;

    Err(usage(format!(
        "{flag} {value:?} is unknown: use {one} or {other}"
    )))
}

impl WantedIntercept {
    pub(super) fn is_of_all_pods(&self) -> bool {
        self.replica == ALL_PODS
    }

    /// `all` or the name of a pod.
    pub(super) fn replica(&self) -> &str {
        &self.replica
    }

    /// The part of the object besides who makes it.
    pub(super) fn spec(&self, session: &SessionRef) -> InterceptSpec {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let ports = self.ports.iter().map(|port| InterceptPort {
            port: port.port,
            protocol: "TCP".to_owned(),
            container: some(&port.found.container),
            // A service's name of a port may be longer than a container's.
            name: some(&port.found.name).filter(|name| name.len() <= 63),
        });

        InterceptSpec {
            user: UserInfo::default(),
            session: SessionReference {
                namespace: session.namespace.clone(),
                name: session.name.clone(),
                uid: session.uid.clone(),
            },
            workload: WorkloadReference {
                kind: self.kind.clone(),
                name: self.workload.clone(),
            },
            mode: INTERCEPT.to_owned(),
            ports: ports.collect(),
            replica: self.replica.clone(),
            probes: self.probes.clone(),
            when_down: self.when_down.clone(),
            take_open: self.take_open,
        }
    }

    /// What ends for this one.
    pub(super) fn takeover(&self) -> TakeOverRequest {
        TakeOverRequest {
            namespace: self.namespace.clone(),
            kind: self.kind.clone(),
            name: self.workload.clone(),
            ports: self.ports.iter().map(|port| port.port.into()).collect(),
            replica: self.replica.clone(),
        }
    }

    /// A name that no other object has. Chosen here, so that an object can be deleted whose creation
    /// has no answer.
    pub(super) fn object_name(&self) -> String {
        // The limit of a name is 253 characters.
        let workload: String = self.workload.chars().take(200).collect();
        let random: String = (0..8).map(|_| fastrand::lowercase()).collect();

        format!("{}-{random}", workload.trim_end_matches(['.', '-']))
    }
}

#[cfg(test)]
mod tests;

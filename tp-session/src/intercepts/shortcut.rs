//! Calls of this workstation to what it intercepts: they go to the local process without passing the
//! cluster, but for those of the local process itself, which are meant for the container.

use std::{
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};
use tp_core::{dns::Zone, packet::FlowKey};
use tp_proto::tunnel::{InterceptState, Outcome};
use tp_transport::{InterceptedFrom, dial_outcome, keep_alive, splice::join_tcp};

use super::{
    super::shared::{Shared, count},
    Entries, EntryPhase, OwnIntercept, OwnIntercepts,
    accept::{DIAL_TIMEOUT, InterceptTargets},
    callers::{Callers, FoundCaller, HandlerPlace},
    dial,
    request::WantedIntercept,
};

/// The calls of this workstation, and the intercepts that they may lead to.
#[derive(Default)]
pub(in super::super) struct LocalCalls {
    /// `None` where there are no intercepts.
    intercepts: Option<(watch::Receiver<Entries>, Arc<InterceptTargets>)>,
    callers: Callers,
}

/// How a connection goes on.
pub(in super::super) enum CallWay {
    /// Through the tunnel, like any other.
    Cluster,
    /// Through the tunnel, to the container.
    Container,
    Local(LocalCall),
    Refused(Outcome),
}

/// A connection to the local process.
pub(in super::super) struct LocalCall {
    tcp: TcpStream,
    _slot: OwnedSemaphorePermit,
}

/// An intercepted port that an address leads to.
struct LedPort {
    wanted: Arc<WantedIntercept>,
    uid: String,
    port: u16,
    /// A pod that the call may have reached in the cluster.
    pod: SocketAddrV4,
    local: SocketAddr,
    /// Whatever goes to the address is intercepted.
    is_whole: bool,
}

impl OwnIntercepts {
    /// For the relay.
    pub(in super::super) fn local_calls(&self) -> LocalCalls {
        LocalCalls {
            intercepts: Some((self.entries.subscribe(), Arc::clone(&self.targets))),
            callers: Callers::default(),
        }
    }
}

impl LocalCalls {
    /// The way of the connection `flow` of this machine, whose alias stands for `target`.
    pub(in super::super) async fn way(
        &self,
        shared: &Shared,
        flow: FlowKey,
        target: SocketAddrV4,
    ) -> CallWay {
        let Some((entries, targets)) = &self.intercepts else {
            return CallWay::Cluster;
        };
        let led = {
            let entries = entries.borrow();
            // Without a tunnel, the cluster is as a network that is down.
            if entries.is_empty() || shared.up.borrow().is_none() {
                return CallWay::Cluster;
            }
            shared.zone(|zone| led_port(&entries, zone, target))
        };
        let Some(led) = led else {
            return CallWay::Cluster;
        };
        let handler = HandlerPlace {
            listens_at: led.local,
            command_of: led.wanted.command_of,
            asked_from: Arc::clone(&led.wanted.asked_from),
        };
        match self.callers.find(handler, flow).await {
            FoundCaller::Handler => return CallWay::Container,
            FoundCaller::Other => {}
            FoundCaller::Untold => return CallWay::Cluster,
            // Neither way is right for both; a refusal ends what would go round for ever.
            FoundCaller::Unknown => return CallWay::Refused(Outcome::Exhausted),
        }
        if !led.is_whole || led.wanted.no_local_shortcut {
            return CallWay::Cluster;
        }

        connect(targets, &led, flow.source).await
    }
}

/// Refuses as an intercepted connection is refused.
async fn connect(targets: &InterceptTargets, led: &LedPort, caller: SocketAddrV4) -> CallWay {
    let Some((target, slots)) = targets.target(&led.uid, led.port) else {
        return CallWay::Cluster;
    };
    let from = InterceptedFrom {
        intercept: led.uid.clone(),
        pod: led.pod.into(),
        client: caller.into(),
    };
    // The caller is of this machine: nobody has to be shown in the session's place.
    let address = target.address;
    let dialled = timeout(DIAL_TIMEOUT, dial::dial(target, &from, None));
    let Ok(slot) = slots.try_acquire_owned() else {
        return CallWay::Refused(Outcome::Exhausted);
    };
    let outcome = match dialled.await {
        Ok(Ok(tcp)) => {
            // Until it is joined, it is reset with the call.
            if let Err(error) = SockRef::from(&tcp).set_linger(Some(Duration::ZERO)) {
                tracing::debug!(%error, "Local call may end softly");
            }
            if let Err(error) = keep_alive(&tcp) {
                tracing::debug!(%error, "Quiet connection not probed");
            }
            count(&led.wanted.local_calls);
            return CallWay::Local(LocalCall { tcp, _slot: slot });
        }
        Ok(Err(error)) => dial_outcome(&error),
        Err(_) => Outcome::TimedOut,
    };
    tracing::debug!(%address, ?outcome, "Local call is refused");
    if outcome != Outcome::Refused {
        return CallWay::Refused(outcome);
    }
    targets.note_refused(&led.uid, led.port);
    match led.wanted.when_down.as_str() {
        "container" => CallWay::Container,
        _ => CallWay::Refused(outcome),
    }
}

impl LocalCall {
    /// Serves the call to its end.
    pub(in super::super) async fn serve(self, client: TcpStream) {
        if let Err(error) = join_tcp(client, self.tcp).await {
            tracing::trace!(%error, "Local call was reset");
        }
    }
}

/// The port to which connections to `target` lead.
fn led_port(entries: &Entries, zone: &Zone, target: SocketAddrV4) -> Option<LedPort> {
    let service = zone.service_at((*target.ip()).into());

    entries.values().find_map(|entry| {
        let made = entry.made.as_ref()?;
        let state = entry.state.as_ref()?;
        if entry.phase != EntryPhase::Standing || !state.refusal.is_empty() {
            return None;
        }
        let (port, is_whole) = leads(entry, state, service, target)?;

        Some(LedPort {
            wanted: Arc::clone(&entry.wanted),
            uid: made.uid.clone(),
            port,
            pod: pod_of(state, port, target),
            local: entry.ports.get(&port)?.address,
            is_whole,
        })
    })
}

/// The address of a service is none of a pod.
fn pod_of(state: &InterceptState, port: u16, target: SocketAddrV4) -> SocketAddrV4 {
    let pods = state.pod_addresses.iter();
    let mut pods = pods.filter_map(|it| <[u8; 4]>::try_from(&it[..]).ok());
    let octets = target.ip().octets();
    if pods.clone().any(|it| it == octets) {
        return target;
    }

    pods.next()
        .map_or(target, |it| SocketAddrV4::new(it.into(), port))
}

/// The port of the pods, and whether all that goes to `target` goes there.
fn leads(
    entry: &OwnIntercept,
    state: &InterceptState,
    service: Option<(&str, &str)>,
    target: SocketAddrV4,
) -> Option<(u16, bool)> {
    let is_held = |port: u16| state.held.iter().any(|it| it.port == u32::from(port));
    let mut ports = entry.wanted.ports.iter().filter(|it| !is_held(it.port));
    let octets = target.ip().octets();
    if state.pod_addresses.iter().any(|it| **it == octets) {
        return ports
            .find(|it| it.port == target.port())
            .map(|it| (it.port, true));
    }
    let (_, name) = service.filter(|(namespace, _)| *namespace == entry.wanted.namespace)?;
    let title = format!("{name}:{}", target.port());
    let port = ports.find(|it| it.found.services.contains(&title))?.port;
    let mut leading = state.services.iter();
    let leading = leading.find(|it| it.name == name && it.port == u32::from(port))?;

    Some((port, leading.is_whole))
}

/// The services of which the manager is to say whether they lead to the pods.
pub(super) fn services(wanted: &WantedIntercept) -> Vec<String> {
    let titles = wanted.ports.iter().flat_map(|port| &port.found.services);
    let mut names: Vec<String> = titles
        .map(|title| title.split(':').next().unwrap_or_default().to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();

    names
}

#[cfg(test)]
mod tests;

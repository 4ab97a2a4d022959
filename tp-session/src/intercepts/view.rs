//! An intercept as the user sees it.

use std::{sync::atomic::Ordering, time::Duration};

use tp_proto::{
    fault::{Fault, FaultKind},
    local::{Intercept, InterceptPod, InterceptPort},
    tunnel::{HeldPort, InterceptState, InterceptedPod},
};

use super::{EntryPhase, OwnIntercept, earlier, request::WantedIntercept};

/// The manager may hear of an intercept from the session before the API server tells it of the object.
const KNOWN_AFTER: Duration = Duration::from_secs(2);
/// Within this time the agent of each node with a Ready pod has said what became of it.
const REPORTED_AFTER: Duration = Duration::from_secs(5);
/// Within this time a session that was killed yields its ports to a later one of its user.
const OWN_YIELDS_AFTER: Duration = Duration::from_secs(15);
const WAITING: &str = "waiting for the traffic manager";

/// What becomes of an intercept that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outlook {
    /// A step that is waited for, as a phrase.
    Pending(String),
    /// Pods are redirected, and no further one will be at the moment.
    Active,
    /// There is no pod, as the manager sees it.
    NoPods,
    Failed(Fault),
}

impl WantedIntercept {
    /// `Deployment web`
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind, self.workload)
    }
}

/// `age` is how long the object has been there.
pub(super) fn outlook(entry: &OwnIntercept, age: Duration) -> Outlook {
    let wanted = &entry.wanted;
    let failed = |message| Outlook::Failed(Fault::new(FaultKind::Failed, message));
    match (entry.phase, &entry.state) {
        (EntryPhase::Leaving, _) => failed(format!(
            "the intercept {} was ended before it was made",
            wanted.name
        )),
        (EntryPhase::Ended, _) => failed(ended(entry)),
        (_, None) => Outlook::Pending(WAITING.to_owned()),
        (_, Some(state))
            if !state.held.is_empty()
                && state.held.iter().all(|it| it.own)
                && age < OWN_YIELDS_AFTER =>
        {
            Outlook::Pending("waiting for the end of an earlier session of yours".to_owned())
        }
        (_, Some(state)) if !state.held.is_empty() => failed(held(wanted, &state.held)),
        (_, Some(state)) if !state.refusal.is_empty() && age < KNOWN_AFTER => {
            Outlook::Pending(WAITING.to_owned())
        }
        (_, Some(state)) if !state.refusal.is_empty() => failed(state.refusal.clone()),
        (_, Some(state)) => {
            let known = if age < REPORTED_AFTER {
                wanted.ready
            } else {
                0
            };
            outlook_of_pods(wanted, state, known)
        }
    }
}

/// `known` pods are Ready, whether or not agents have said so.
fn outlook_of_pods(wanted: &WantedIntercept, state: &InterceptState, known: u32) -> Outlook {
    let redirected = state.pods.iter().filter(|pod| pod.is_redirected).count();
    let refused: Vec<&InterceptedPod> = state.pods.iter().filter(|pod| is_refused(pod)).collect();
    let expected = state.pods.len().max(known as usize);
    if expected == 0 && redirected == 0 && refused.is_empty() {
        return Outlook::NoPods;
    }
    if redirected + refused.len() < expected {
        let title = wanted.title();
        return Outlook::Pending(format!(
            "redirecting the pods of {title}: {redirected} of {expected}"
        ));
    }
    if redirected > 0 {
        return Outlook::Active;
    }
    let reasons: Vec<String> = refused
        .iter()
        .map(|pod| format!("{}: {}", pod.name, pod.reason))
        .collect();

    Outlook::Failed(Fault::new(
        FaultKind::Failed,
        format!(
            "no pod of {} can be intercepted: {}",
            wanted.title(),
            reasons.join("; ")
        ),
    ))
}

fn is_refused(pod: &InterceptedPod) -> bool {
    !pod.is_redirected && !pod.reason.is_empty()
}

/// Refuses what somebody else has, unless it is to be taken over, or may be another pod's.
pub(super) fn check_free(wanted: &WantedIntercept, found: &[HeldPort]) -> Result<(), Fault> {
    let others: Vec<HeldPort> = found.iter().filter(|it| !it.own).cloned().collect();
    if others.is_empty() || wanted.take_over || !wanted.is_of_all_pods() {
        return Ok(());
    }

    Err(Fault::new(FaultKind::Failed, held(wanted, &others)))
}

fn held(wanted: &WantedIntercept, held: &[HeldPort]) -> String {
    let holders: Vec<String> = held
        .iter()
        .map(|it| format!("{} has port {} since {}", it.user, it.port, it.since))
        .collect();

    format!(
        "{} is intercepted already: {}; ask them to end it with `tp leave`, or take it over with \
         --take-over",
        wanted.title(),
        holders.join(", ")
    )
}

fn ended(entry: &OwnIntercept) -> String {
    format!(
        "{}: `tp leave {}`, then intercept again",
        entry.fault, entry.wanted.name
    )
}

/// The stable word, and why it is not "active".
fn state(entry: &OwnIntercept, without_tunnel: Option<&str>) -> (&'static str, String) {
    if entry.phase == EntryPhase::Ended {
        return ("ended", ended(entry));
    }
    if let Some(reason) = without_tunnel {
        return (
            "waiting",
            format!("there is no tunnel at the moment: {reason}"),
        );
    }
    if entry.made.is_none() {
        let reason = match entry.fault.as_str() {
            "" => "it is being made again, as the session has connected again".to_owned(),
            fault => fault.to_owned(),
        };
        return ("waiting", reason);
    }
    let Some(state) = &entry.state else {
        return (
            "waiting",
            "the traffic manager has not said what became of it yet".to_owned(),
        );
    };
    if !state.held.is_empty() {
        return ("held", held(&entry.wanted, &state.held));
    }
    if !state.refusal.is_empty() {
        return ("waiting", state.refusal.clone());
    }
    if state.pods.iter().any(|pod| pod.is_redirected) {
        return ("active", String::new());
    }
    match outlook_of_pods(&entry.wanted, state, 0) {
        Outlook::NoPods => {
            let title = entry.wanted.title();
            let reason = format!("{title} has no pod that is Ready at the moment");
            ("waiting", reason)
        }
        Outlook::Failed(fault) => ("waiting", fault.message),
        Outlook::Pending(phrase) => ("waiting", phrase),
        Outlook::Active => ("active", String::new()),
    }
}

fn notices(entry: &OwnIntercept) -> Vec<String> {
    let served = match entry.wanted.when_down.as_str() {
        "container" => "the container serves until something does",
        _ => "connections are refused until something does",
    };
    let unheard = entry.ports.values().filter(|port| !port.is_listening);
    let mut notices: Vec<String> = unheard
        .map(|port| format!("nothing listens at {} yet: {served}", port.address))
        .collect();
    let pods = entry.state.iter().flat_map(|state| &state.pods);
    let partly = pods.clone().any(|pod| pod.is_redirected);
    let refused = pods.filter(|pod| partly && is_refused(pod));
    notices.extend(refused.map(|pod| {
        format!(
            "the pod {} goes on to serve by itself: {}",
            pod.name, pod.reason
        )
    }));
    notices.extend(unshown(entry.wanted.unshown.load(Ordering::Relaxed)));

    notices
}

fn unshown(connections: u64) -> Option<String> {
    let came = match connections {
        0 => return None,
        1 => "1 connection came without its client's address".to_owned(),
        _ => format!("{connections} connections came without their client's address"),
    };

    Some(format!(
        "{came}: the local process saw one of this machine instead; --proxy-protocol tells it"
    ))
}

pub(super) fn of(entry: &OwnIntercept, without_tunnel: Option<&str>) -> Intercept {
    let wanted = &entry.wanted;
    let (state, reason) = state(entry, without_tunnel);
    let ports = wanted.ports.iter().map(|port| {
        let local = entry.ports.get(&port.port);
        InterceptPort {
            port: port.port.into(),
            name: port.found.name.clone(),
            container: port.found.container.clone(),
            services: port.found.services.clone(),
            local: local.map(|it| it.address.to_string()).unwrap_or_default(),
            is_listening: local.is_some_and(|it| it.is_listening),
        }
    });
    let pods = entry.state.iter().flat_map(|state| &state.pods);

    Intercept {
        name: wanted.name.clone(),
        namespace: wanted.namespace.clone(),
        kind: wanted.kind.clone(),
        workload: wanted.workload.clone(),
        object: entry.object.clone(),
        state: state.to_owned(),
        reason,
        since: entry.since.to_string(),
        ports: ports.collect(),
        pods: pods.map(pod).collect(),
        notices: notices(entry),
        proxy_protocol: wanted.proxy_protocol,
        local: wanted.local_calls.load(Ordering::Relaxed),
        take_open: wanted.take_open,
    }
}

fn pod(pod: &InterceptedPod) -> InterceptPod {
    let mut shown = InterceptPod {
        name: pod.name.clone(),
        node: pod.node.clone(),
        is_redirected: pod.is_redirected,
        reason: pod.reason.clone(),
        ..InterceptPod::default()
    };
    for port in &pod.ports {
        shown.to_workstation += port.to_workstation;
        shown.to_container += port.to_container;
        shown.exempt += port.exempt;
        shown.refused += port.refused;
    }
    earlier::add(&mut shown, &pod.ports);

    shown
}

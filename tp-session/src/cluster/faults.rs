//! Refusals of the API server as sentences.

use std::time::Duration;

use tp_proto::{
    crd::{GROUP, MANAGER_CONFIG_MAP},
    fault::{Fault, FaultKind, chain},
    grant,
};

use super::{Place, forward::NotPassed};

/// In the words of the API server where an admission policy refuses.
const POLICY: &str = "ValidatingAdmissionPolicy";

/// What was asked of the API server.
pub(super) enum Doing {
    Login,
    ReadKeys,
    CreateSession,
    PortForward(String),
}

pub(super) fn api_fault(doing: &Doing, place: &Place, error: kube::Error) -> Fault {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::UpgradeConnection(error) => {
            return Fault::new(
                FaultKind::Unavailable,
                format!("no {}: {error}", doing.phrase(place)),
            );
        }
        kube::Error::Service(error) if error.is::<NotPassed>() => {
            return Fault::new(
                FaultKind::Unavailable,
                format!("no {}: {error}", doing.phrase(place)),
            );
        }
        // Of the login: it knows better.
        kube::Error::Service(error) if error.is::<Fault>() => {
            return error.downcast().map_or_else(
                |error| unreachable(place, &error.to_string()),
                |fault| *fault,
            );
        }
        error => return unreachable(place, &chain(&error)),
    };
    match (status.code, doing) {
        (401, _) => Fault::new(
            FaultKind::NoPermission,
            format!(
                "the API server {} does not accept the credentials of context {}: log in again",
                place.server, place.context
            ),
        ),
        (403, doing) => forbidden(doing, place, &status.message),
        (404, Doing::CreateSession) if status.message.contains("namespaces") => Fault::new(
            FaultKind::Config,
            format!(
                "the namespace {} does not exist: choose one with --namespace",
                place.namespace
            ),
        ),
        (404, Doing::ReadKeys | Doing::CreateSession) => not_installed(place),
        (404, Doing::PortForward(pod)) => Fault::new(
            FaultKind::TemporaryFailure,
            format!(
                "the traffic manager's pod {}/{pod} does not exist (yet): try again",
                place.manager_namespace
            ),
        ),
        (_, doing) => Fault::new(
            FaultKind::Failed,
            format!(
                "the API server {} refuses {}: {}",
                place.server,
                doing.phrase(place),
                status.message
            ),
        ),
    }
}

fn forbidden(doing: &Doing, place: &Place, said: &str) -> Fault {
    let manager = &place.manager_namespace;
    let message = match doing {
        Doing::Login => format!(
            "the API server {} does not let you in: {said}",
            place.server
        ),
        Doing::ReadKeys => format!(
            "you may not get the ConfigMap {MANAGER_CONFIG_MAP} in the namespace {manager}: if tp is \
             there, ask an administrator for `{}`; if it is elsewhere, name that namespace with \
             --manager-namespace",
            granting(place, said)
        ),
        Doing::CreateSession if said.contains(POLICY) => {
            format!("the API server refuses the session: {said}")
        }
        Doing::CreateSession => format!(
            "you may not create sessions.{GROUP} in the namespace {}: ask an administrator for \
             `{}`, or choose another one with --namespace",
            place.namespace,
            granting(place, said)
        ),
        Doing::PortForward(pod) => format!(
            "you may not get and create pods/portforward for {pod} in the namespace {manager}: ask \
             an administrator for `{}`",
            granting(place, said)
        ),
    };

    Fault::new(FaultKind::NoPermission, message)
}

/// The command that gives what is missing. The API server says whom it knows: `… is forbidden: User
/// "alice" cannot …`.
fn granting(place: &Place, said: &str) -> String {
    let user = said
        .split_once("User \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("USER", |(user, _)| user);

    grant::command(user, &place.namespace, &place.manager_namespace)
}

/// Whether an admission policy refuses, not a missing right.
pub(super) fn is_of_policy(fault: &Fault) -> bool {
    fault.kind == FaultKind::NoPermission && fault.message.contains(POLICY)
}

pub(super) fn not_installed(place: &Place) -> Fault {
    Fault::new(
        FaultKind::NotInstalled,
        format!(
            "tp is not installed in the cluster of context {} (nothing in the namespace {}): \
             `tp install --image REF` installs it",
            place.context, place.manager_namespace
        ),
    )
}

fn unreachable(place: &Place, why: &str) -> Fault {
    Fault::new(
        FaultKind::Unavailable,
        format!(
            "the API server {} of context {} cannot be reached: {why}",
            place.server, place.context
        ),
    )
}

pub(super) fn silent(place: &Place, limit: Duration) -> Fault {
    unreachable(place, &format!("no answer within {} s", limit.as_secs()))
}

impl Doing {
    fn phrase(&self, place: &Place) -> String {
        match self {
            Self::Login => "the login".to_owned(),
            Self::ReadKeys => format!("reading the ConfigMap {MANAGER_CONFIG_MAP}"),
            Self::CreateSession => format!("a session in the namespace {}", place.namespace),
            Self::PortForward(pod) => format!("port-forward to {pod}"),
        }
    }
}

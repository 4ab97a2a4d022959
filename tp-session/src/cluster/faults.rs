//! Refusals of the API server as sentences.

use std::time::Duration;

use tp_proto::{
    crd::{GROUP, MANAGER_CONFIG_MAP},
    fault::{Fault, FaultKind, chain},
    grant,
};

use super::{Destination, forward::UpgradeBlocked};

/// Part of the API server's message when an admission policy refuses.
const POLICY: &str = "ValidatingAdmissionPolicy";

/// A request to the API server.
#[derive(Clone)]
pub(super) enum Operation {
    Login,
    ReadKeys,
    CreateSession,
    PortForward(String),
    /// In the namespace.
    CreateIntercept(String),
    ReadIntercept(String),
    DeleteIntercept(String),
}

pub(super) fn api_fault(
    operation: &Operation,
    destination: &Destination,
    error: kube::Error,
) -> Fault {
    let status = match error {
        kube::Error::Api(status) => status,
        kube::Error::UpgradeConnection(error) => {
            return Fault::new(
                FaultKind::Unavailable,
                format!("no {}: {error}", operation.phrase(destination)),
            );
        }
        kube::Error::Service(error) if error.is::<UpgradeBlocked>() => {
            return Fault::new(
                FaultKind::Unavailable,
                format!("no {}: {error}", operation.phrase(destination)),
            );
        }
        // A fault of the login says more.
        kube::Error::Service(error) if error.is::<Fault>() => {
            return error.downcast().map_or_else(
                |error| unreachable(destination, &error.to_string()),
                |fault| *fault,
            );
        }
        error => return unreachable(destination, &chain(&error)),
    };
    match (status.code, operation) {
        (401, _) => Fault::new(
            FaultKind::NoPermission,
            format!(
                "the API server {} does not accept the credentials of context {}: log in again",
                destination.server, destination.context
            ),
        ),
        (403, operation) => forbidden(operation, destination, &status.message),
        (404, Operation::CreateSession) if status.message.contains("namespaces") => Fault::new(
            FaultKind::Config,
            format!(
                "the namespace {} does not exist: choose one with --namespace",
                destination.namespace
            ),
        ),
        (404, Operation::ReadKeys | Operation::CreateSession) => not_installed(destination),
        (404, Operation::CreateIntercept(namespace)) if status.message.contains("namespaces") => {
            Fault::new(
                FaultKind::Config,
                format!("the namespace {namespace} does not exist: choose one with --namespace"),
            )
        }
        (404, Operation::CreateIntercept(_) | Operation::DeleteIntercept(_)) => Fault::new(
            FaultKind::NotInstalled,
            format!(
                "the tp in the cluster of context {} is older and knows no intercepts: ask an \
                 administrator to run `tp install`",
                destination.context
            ),
        ),
        (404, Operation::PortForward(pod)) => Fault::new(
            FaultKind::TemporaryFailure,
            format!(
                "the traffic manager's pod {}/{pod} does not exist (yet): try again",
                destination.manager_namespace
            ),
        ),
        (_, operation) => Fault::new(
            FaultKind::Failed,
            format!(
                "the API server {} refuses {}: {}",
                destination.server,
                operation.phrase(destination),
                status.message
            ),
        ),
    }
}

fn forbidden(operation: &Operation, destination: &Destination, said: &str) -> Fault {
    let manager = &destination.manager_namespace;
    let message = match operation {
        Operation::Login => format!(
            "the API server {} does not let you in: {said}",
            destination.server
        ),
        Operation::ReadKeys => format!(
            "you may not get the ConfigMap {MANAGER_CONFIG_MAP} in the namespace {manager}: if tp is \
             there, ask an administrator for `{}`; if it is elsewhere, name that namespace with \
             --manager-namespace",
            granting(destination, said)
        ),
        Operation::CreateSession if said.contains(POLICY) => {
            format!("the API server refuses the session: {said}")
        }
        Operation::CreateSession => format!(
            "you may not create sessions.{GROUP} in the namespace {}: ask an administrator for \
             `{}`, or choose another one with --namespace",
            destination.namespace,
            granting(destination, said)
        ),
        Operation::PortForward(pod) => format!(
            "you may not get and create pods/portforward for {pod} in the namespace {manager}: ask \
             an administrator for `{}`",
            granting(destination, said)
        ),
        Operation::CreateIntercept(_) if said.contains(POLICY) => {
            format!("the API server refuses the intercept: {said}")
        }
        Operation::CreateIntercept(namespace) => format!(
            "you may not create intercepts.{GROUP} in the namespace {namespace}: ask an administrator \
             for `{}`",
            grant::intercept_command(user_in(said), namespace, &destination.manager_namespace)
        ),
        Operation::ReadIntercept(namespace) => format!(
            "you may not get intercepts.{GROUP} in the namespace {namespace}: ask an administrator \
             for `{}`",
            grant::intercept_command(user_in(said), namespace, &destination.manager_namespace)
        ),
        Operation::DeleteIntercept(namespace) => format!(
            "you may not delete intercepts.{GROUP} in the namespace {namespace}: ask an administrator \
             for `{}`",
            grant::intercept_command(user_in(said), namespace, &destination.manager_namespace)
        ),
    };

    Fault::new(FaultKind::NoPermission, message)
}

/// The command that grants the missing right.
fn granting(destination: &Destination, said: &str) -> String {
    let namespace = &destination.namespace;

    grant::command(user_in(said), namespace, &destination.manager_namespace)
}

/// The user in the API server's message: `… is forbidden: User "alice" cannot …`.
fn user_in(said: &str) -> &str {
    said.split_once("User \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("USER", |(user, _)| user)
}

/// Returns whether the API server certainly did nothing.
pub(in super::super) fn is_refusal(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::NoPermission | FaultKind::NotInstalled | FaultKind::Config
    )
}

/// Returns whether an admission policy refuses, rather than RBAC.
pub(super) fn is_of_policy(fault: &Fault) -> bool {
    fault.kind == FaultKind::NoPermission && fault.message.contains(POLICY)
}

pub(super) fn not_installed(destination: &Destination) -> Fault {
    Fault::new(
        FaultKind::NotInstalled,
        format!(
            "tp is not installed in the cluster of context {} (nothing in the namespace {}): \
             `tp install --image REF` installs it",
            destination.context, destination.manager_namespace
        ),
    )
}

fn unreachable(destination: &Destination, why: &str) -> Fault {
    Fault::new(
        FaultKind::Unavailable,
        format!(
            "the API server {} of context {} cannot be reached: {why}",
            destination.server, destination.context
        ),
    )
}

pub(super) fn silent(destination: &Destination, limit: Duration) -> Fault {
    unreachable(
        destination,
        &format!("no answer within {} s", limit.as_secs()),
    )
}

impl Operation {
    fn phrase(&self, destination: &Destination) -> String {
        match self {
            Self::Login => "the login".to_owned(),
            Self::ReadKeys => format!("reading the ConfigMap {MANAGER_CONFIG_MAP}"),
            Self::CreateSession => format!("a session in the namespace {}", destination.namespace),
            Self::PortForward(pod) => format!("port-forward to {pod}"),
            Self::CreateIntercept(namespace) => {
                format!("an intercept in the namespace {namespace}")
            }
            Self::ReadIntercept(namespace) => {
                format!("reading an intercept in the namespace {namespace}")
            }
            Self::DeleteIntercept(namespace) => {
                format!("the end of an intercept in the namespace {namespace}")
            }
        }
    }
}

//! The environment of a container of a workload. Nothing of it is kept here.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;
use tp_core::intercept::workload::{WorkloadError, WorkloadName};
use tp_proto::{
    fault::{Fault, FaultKind},
    local::{EnvironmentRequest, EnvironmentResponse},
    tunnel,
};

use super::super::connection::Connection;

/// The manager bounds its own looks: into the cluster, and at the agent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn of(
    connection: &Connection,
    request: EnvironmentRequest,
) -> Result<EnvironmentResponse, Fault> {
    // A mistake is told without asking anybody.
    let workload: Result<WorkloadName, WorkloadError> = request.workload.parse();
    workload.map_err(|error| Fault::new(FaultKind::Usage, error.to_string()))?;
    let Some(up) = connection.shared.up() else {
        let reason = connection.shared.reason.borrow().clone();
        let message = format!("there is no tunnel at the moment: {reason}");
        return Err(Fault::new(FaultKind::Unavailable, message));
    };
    let namespace = match request.namespace {
        empty if empty.is_empty() => connection.destination.namespace.clone(),
        namespace => namespace,
    };
    let mut manager = up.manager;
    let asked = manager.read_environment(tunnel::EnvironmentRequest {
        namespace: namespace.clone(),
        workload: request.workload,
        container: request.container,
        otherwise: request.otherwise,
        pod: request.pod,
    });
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(environment)) => Ok(told(namespace, environment.into_inner())),
        Ok(Err(status)) => Err(fault(&status)),
        Err(_) => {
            let message = "the traffic manager does not read the environment in time: try again";
            Err(Fault::new(FaultKind::TemporaryFailure, message))
        }
    }
}

fn told(namespace: String, environment: tunnel::EnvironmentResponse) -> EnvironmentResponse {
    let notices = notices(&environment);

    EnvironmentResponse {
        namespace,
        kind: environment.kind,
        workload: environment.name,
        pod: environment.pod,
        container: environment.container,
        environ: environment.environ.to_vec(),
        notices,
    }
}

fn notices(environment: &tunnel::EnvironmentResponse) -> Vec<String> {
    let rebuilt = environment.is_rebuilt.then(|| {
        format!(
            "the first process of container {} has written its title over its environment, as nginx \
             and PostgreSQL do: this is what the specification of pod {} says, without what the image \
             and links to services set",
            environment.container, environment.pod
        )
    });
    let missing = (!environment.missing.is_empty()).then(|| {
        format!(
            "the specification does not hold the values of {}: --env-set NAME=VALUE sets one",
            environment.missing.join(", ")
        )
    });
    let excluded = match environment.excluded {
        0 => None,
        1 => Some("one variable does not leave its node, as whoever installed tp wants it".into()),
        many => Some(format!(
            "{many} variables do not leave their node, as whoever installed tp wants it"
        )),
    };

    rebuilt.into_iter().chain(missing).chain(excluded).collect()
}

/// The manager's sentence is the message.
fn fault(status: &tonic::Status) -> Fault {
    let kind = match status.code() {
        Code::PermissionDenied => FaultKind::NoPermission,
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument => FaultKind::Usage,
        Code::Aborted => FaultKind::Failed,
        Code::Unimplemented => {
            let message = "the traffic manager is older and reads no environments: ask an \
                           administrator to run `tp install`";
            return Fault::new(FaultKind::NotInstalled, message);
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => {
            FaultKind::TemporaryFailure
        }
        _ => FaultKind::Unavailable,
    };

    Fault::new(kind, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_should_know_is_said_without_values() {
        let environment = tunnel::EnvironmentResponse {
            pod: "db-0".into(),
            container: "postgres".into(),
            environ: b"TOKEN=hunter2\0".as_slice().into(),
            is_rebuilt: true,
            missing: vec!["PASSWORD (Secret db)".into()],
            excluded: 2,
            ..tunnel::EnvironmentResponse::default()
        };

        let told = told("shop".into(), environment);

        let [rebuilt, missing, excluded] = told.notices.as_slice() else {
            panic!("{told:?}");
        };
        assert!(rebuilt.contains("container postgres"), "{rebuilt}");
        assert!(rebuilt.contains("specification of pod db-0"), "{rebuilt}");
        assert!(missing.contains("PASSWORD (Secret db)"), "{missing}");
        assert!(excluded.starts_with("2 variables"), "{excluded}");
        assert_eq!(told.environ, b"TOKEN=hunter2\0");
        assert!(!format!("{told:?}").contains("hunter2"));
        assert_eq!(notices(&tunnel::EnvironmentResponse::default()), [""; 0]);
    }

    #[test]
    fn a_refusal_is_a_missing_permission_in_the_words_of_the_manager() {
        let fault_of = |status: tonic::Status| fault(&status);

        let refused = fault_of(tonic::Status::permission_denied("create pods/exec"));
        assert_eq!(refused.kind, FaultKind::NoPermission);
        assert_eq!(refused.message, "create pods/exec");
        let older = fault_of(tonic::Status::unimplemented(""));
        assert_eq!(older.kind, FaultKind::NotInstalled);
        let busy = fault_of(tonic::Status::unavailable("no agent"));
        assert_eq!(busy.kind, FaultKind::TemporaryFailure);
        let unknown = fault_of(tonic::Status::not_found("no pod"));
        assert_eq!(unknown.kind, FaultKind::Usage);
        assert_eq!(
            fault_of(tonic::Status::aborted("no")).kind,
            FaultKind::Failed
        );
    }
}

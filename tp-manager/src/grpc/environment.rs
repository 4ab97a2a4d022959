//! `ReadEnvironment`: for users who could read it in the container.

use futures::future::BoxFuture;
use tonic::Status;
use tp_core::environment::rebuild::rebuild;
use tp_proto::{
    agent::EnvironQuestion,
    tunnel::{EnvironmentRequest, EnvironmentResponse},
};
use tp_transport::SessionRef;

use super::{Control, NO_INTERCEPTS};
use crate::{
    access::Scope,
    model::{AgentEnviron, EnvironError, FindError, FoundContainer, WantedContainer},
};

#[cfg(test)]
mod tests;

/// Finds containers and reads their environments; `index` and `agents` know how.
pub(crate) trait Environments: Send + Sync + 'static {
    fn find(
        &self,
        wanted: WantedContainer,
    ) -> BoxFuture<'static, Result<FoundContainer, FindError>>;

    /// Asks the agent of the node.
    fn read(
        &self,
        node: String,
        question: EnvironQuestion,
    ) -> BoxFuture<'static, Result<AgentEnviron, EnvironError>>;
}

impl From<EnvironError> for Status {
    fn from(error: EnvironError) -> Self {
        match error {
            EnvironError::Refused(reason) => Self::aborted(reason),
            EnvironError::Unavailable(reason) => Self::unavailable(reason),
        }
    }
}

impl Control {
    pub(super) async fn environment(
        &self,
        request: EnvironmentRequest,
    ) -> Result<EnvironmentResponse, Status> {
        let served = self.served.as_ref();
        let served = served.ok_or_else(|| Status::failed_precondition(NO_INTERCEPTS))?;

        self.environment_for(served.session(), request).await
    }

    async fn environment_for(
        &self,
        session: &SessionRef,
        request: EnvironmentRequest,
    ) -> Result<EnvironmentResponse, Status> {
        self.check_may_exec(&request).await?;
        let wanted = wanted(request)?;
        let namespace = wanted.namespace.clone();
        let read_in = namespace.clone();
        let _turn = self.limits.environments.acquire().await;
        let environments = &self.replica.environments;
        let found = environments.find(wanted).await?;
        let question = EnvironQuestion {
            number: 0,
            session_namespace: session.namespace.clone(),
            session_name: session.name.clone(),
            session_uid: session.uid.clone(),
            namespace,
            pod: found.pod_uid.clone(),
            container: found.id.clone(),
        };
        let environ = environments.read(found.node.clone(), question).await?;
        tracing::info!(
            user = self.user.borrow().name(),
            namespace = read_in,
            workload = %format_args!("{}/{}", found.kind, found.workload),
            pod = found.pod,
            container = found.container,
            "Environment read"
        );

        Ok(response(found, environ))
    }

    async fn check_may_exec(&self, request: &EnvironmentRequest) -> Result<(), Status> {
        let scope = Scope::Exec(request.namespace.clone());
        if self.may(&scope).await? {
            return Ok(());
        }
        let user = self.user.borrow();

        Err(Status::permission_denied(format!(
            "{} may not read the environment of {}: it holds secrets, and takes the right to {}",
            user.name(),
            request.workload,
            scope.right()
        )))
    }
}

fn wanted(request: EnvironmentRequest) -> Result<WantedContainer, Status> {
    let workload = request.workload.parse();
    let workload = workload.map_err(|error: tp_core::intercept::workload::WorkloadError| {
        Status::invalid_argument(error.to_string())
    })?;
    let chosen = |text: String| Some(text).filter(|text| !text.is_empty());

    Ok(WantedContainer {
        namespace: request.namespace,
        workload,
        container: chosen(request.container),
        otherwise: chosen(request.otherwise),
        pod: chosen(request.pod),
    })
}

/// What the process has written over, the specification may tell.
fn response(found: FoundContainer, environ: AgentEnviron) -> EnvironmentResponse {
    let mut response = EnvironmentResponse {
        kind: found.kind,
        name: found.workload,
        pod: found.pod,
        container: found.container,
        is_rebuilt: environ.is_overwritten,
        excluded: environ.excluded,
        ..EnvironmentResponse::default()
    };
    if environ.is_overwritten {
        let rebuilt = rebuild(&found.spec);
        let (left, excluded) = rebuilt.environment.without(&environ.excluded_names);
        response.environ = left.to_environ().into();
        response.missing = rebuilt.missing;
        response.excluded = u32::try_from(excluded).unwrap_or(u32::MAX);
    } else {
        response.environ = environ.environ.into();
    }

    response
}

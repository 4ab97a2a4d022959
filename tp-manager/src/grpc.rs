//! The control service of one session: sends the model as messages.
//!
//! Knows the model and the wire, nothing of Kubernetes objects.

mod candidates;
mod find;
mod intercepts;
mod resolve;
mod table;
mod takeover;
mod wire;

use std::{pin::Pin, sync::Arc};

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, watch},
};
use tonic::{Request, Response, Status, Streaming};
use tp_core::{
    VERSION,
    dns::{self, Subject},
    intercept::workload::WorkloadName,
};
use tp_proto::grant;
use tp_proto::tunnel::{
    Candidates, FindWorkloadRequest, FindWorkloadResponse, HelloRequest, HelloResponse,
    InterceptStates, ListWorkloadsRequest, ListWorkloadsResponse, LocalIntercepts, ResolveRequest,
    ResolveResponse, TableEvent, TakeOverRequest, TakeOverResponse, WatchTableRequest,
    manager_server::{Manager, ManagerServer},
    table_event::Event,
};

use crate::{
    access::{Access, Scope, User},
    intercepts::{serving::ServedHandle, taking::EndIntercept},
    model::{FindError, FoundWorkload, Owner, SharedModel, Workload},
};
use find::Wanted;
pub(crate) use resolve::Resolver;

const NO_INTERCEPTS: &str = "this stream serves no intercepts";
const MAX_TABLES: usize = 4;
const MAX_QUERIES: usize = 64;
const MAX_LISTS: usize = 2;
/// Unwritten bytes of an answer above which no more of it is produced. h2 keeps a slot for each
/// frame that ever waited.
const MAX_UNSENT: usize = 16 << 10;

/// Lists and finds the workloads of a namespace; `index` knows how.
pub(crate) trait Workloads: Send + Sync + 'static {
    fn find(
        &self,
        namespace: String,
        name: WorkloadName,
    ) -> BoxFuture<'static, Result<FoundWorkload, FindError>>;

    fn list(&self, namespace: String) -> BoxFuture<'static, Result<Vec<Workload>, String>>;
}

/// The state that all sessions of this replica share.
pub(crate) struct Replica {
    pub(crate) pod: String,
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) resolver: Resolver,
    pub(crate) workloads: Box<dyn Workloads>,
    pub(crate) endings: Box<dyn EndIntercept>,
}

/// Serves one session.
#[derive(Clone)]
pub(crate) struct Control {
    replica: Arc<Replica>,
    model: SharedModel,
    access: Arc<Access>,
    user: watch::Receiver<Arc<User>>,
    limits: Arc<CallLimits>,
    /// `None` where no session is served.
    served: Option<ServedHandle>,
}

/// Limits of the calls of one session on all its control streams: a second table may begin before
/// the end of the first is noticed, and queries to a slow zone may accumulate.
#[derive(Debug)]
pub(crate) struct CallLimits {
    tables: Arc<Semaphore>,
    queries: Semaphore,
    lists: Semaphore,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            tables: Arc::new(Semaphore::new(MAX_TABLES)),
            queries: Semaphore::new(MAX_QUERIES),
            lists: Semaphore::new(MAX_LISTS),
        }
    }
}

/// Serves gRPC on one stream until it ends.
pub(crate) async fn serve<I>(io: I, control: Control)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(ManagerServer::new(control));
    let mut server = Builder::new(TokioExecutor::new()).http2_only();
    server.http2().max_send_buf_size(MAX_UNSENT);
    let served = server.serve_connection(TokioIo::new(io), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "Control stream ended");
    }
}

impl Control {
    pub(crate) fn new(
        replica: Arc<Replica>,
        model: SharedModel,
        access: Arc<Access>,
        user: watch::Receiver<Arc<User>>,
        limits: Arc<CallLimits>,
    ) -> Self {
        Self {
            replica,
            model,
            access,
            user,
            limits,
            served: None,
        }
    }

    /// Serves the Intercepts of this session.
    pub(crate) fn serving(mut self, served: ServedHandle) -> Self {
        self.served = Some(served);
        self
    }

    async fn check_may_intercept(&self, namespace: &str) -> Result<(), Status> {
        let scope = Scope::Intercepts(namespace.into());
        if self.may(&scope).await? {
            return Ok(());
        }
        let user = Arc::clone(&self.user.borrow());
        let manager_namespace = &self.replica.namespace;
        let command = grant::intercept_command(user.name(), namespace, manager_namespace);

        Err(Status::permission_denied(format!(
            "{} may not {}: an administrator lets them by `{command}`",
            user.name(),
            scope.right()
        )))
    }

    /// Returns whether the user has a right.
    async fn may(&self, scope: &Scope) -> Result<bool, Status> {
        let user = Arc::clone(&self.user.borrow());
        self.access
            .allows(&user, scope)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn may_reach(&self, namespace: &str) -> Result<bool, Status> {
        self.may(&Scope::Namespace(namespace.into())).await
    }

    /// Returns whether the user may know the answer to a query about `subject`.
    async fn may_ask(&self, subject: &Subject) -> Result<bool, Status> {
        let namespace = match subject {
            Subject::Foreign => return Ok(false),
            Subject::In(namespace) => namespace.clone(),
            Subject::About(address) => match self.model.read().owner(*address) {
                Owner::Namespace(namespace) | Owner::Service { namespace, .. } => namespace,
                _ => return Ok(false),
            },
        };

        self.may_reach(&namespace).await
    }
}

#[tonic::async_trait]
impl Manager for Control {
    async fn hello(
        &self,
        _request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let candidates = candidates::candidates(&self.replica, &self.model).await;

        Ok(Response::new(HelloResponse {
            version: VERSION.into(),
            replica: self.replica.pod.clone(),
            candidates,
            cluster_domain: self.replica.resolver.cluster_domain().into(),
        }))
    }

    type WatchTableStream = Pin<Box<dyn Stream<Item = Result<TableEvent, Status>> + Send>>;

    async fn watch_table(
        &self,
        _request: Request<WatchTableRequest>,
    ) -> Result<Response<Self::WatchTableStream>, Status> {
        let permit = Arc::clone(&self.limits.tables).try_acquire_owned();
        let permit = permit.map_err(|_| {
            let message = format!("this session watches {MAX_TABLES} tables, as many as it may");
            Status::resource_exhausted(message)
        })?;
        let events = table::events(
            self.model.clone(),
            Arc::clone(&self.access),
            self.user.clone(),
            permit,
        );

        let candidates = candidates::changes(Arc::clone(&self.replica), self.model.clone());
        let candidates = candidates.map(|endpoints| {
            let event = Event::Candidates(Candidates { endpoints });
            Ok(TableEvent { event: Some(event) })
        });
        // Clients expect the snapshot first.
        let all = Box::pin(events)
            .into_future()
            .map(|(snapshot, events)| {
                stream::iter(snapshot).chain(stream::select(events, candidates))
            })
            .flatten_stream();

        Ok(Response::new(Box::pin(all)))
    }

    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        let query = request.into_inner().query;
        let resolver = &self.replica.resolver;
        let subject = dns::subject(&query, resolver.cluster_domain())
            .ok_or_else(|| Status::invalid_argument("this is not a DNS query"))?;
        let response = if self.may_ask(&subject).await? {
            resolver
                .ask(&query, &self.limits.queries)
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?
        } else {
            bytes::Bytes::new()
        };

        Ok(Response::new(ResolveResponse { response }))
    }

    async fn list_workloads(
        &self,
        request: Request<ListWorkloadsRequest>,
    ) -> Result<Response<ListWorkloadsResponse>, Status> {
        let namespace = request.into_inner().namespace;
        if !self.may_reach(&namespace).await? {
            return Err(Status::permission_denied(format!(
                "the user may not {}",
                Scope::Namespace(namespace).right()
            )));
        }
        let _permit = self.limits.lists.acquire().await;
        let workloads = self
            .replica
            .workloads
            .list(namespace.clone())
            .await
            .map_err(Status::unavailable)?;
        let held = self.holders_in(&namespace).await;
        let user = Arc::clone(&self.user.borrow());

        Ok(Response::new(ListWorkloadsResponse {
            workloads: workloads
                .into_iter()
                .map(|workload| {
                    let (kind, name) = (workload.kind, &workload.name);
                    let intercepts = takeover::of_workload(&held, kind, name, &user);
                    wire::workload(workload, &namespace, intercepts)
                })
                .collect(),
        }))
    }

    async fn find_workload(
        &self,
        request: Request<FindWorkloadRequest>,
    ) -> Result<Response<FindWorkloadResponse>, Status> {
        let request = request.into_inner();
        self.check_may_intercept(&request.namespace).await?;
        let wanted = Wanted::of(&request)?;
        let _permit = self.limits.lists.acquire().await;
        let workloads = &self.replica.workloads;
        let namespace = request.namespace;
        let found = workloads
            .find(namespace.clone(), wanted.name.clone())
            .await?;
        let mut found = wanted.resolve(found)?;
        found.held = self.holders_of(&namespace, &found);

        Ok(Response::new(found))
    }

    async fn take_over(
        &self,
        request: Request<TakeOverRequest>,
    ) -> Result<Response<TakeOverResponse>, Status> {
        let ended = self.end_others(request.into_inner()).await?;

        Ok(Response::new(ended))
    }

    type ServeInterceptsStream =
        Pin<Box<dyn Stream<Item = Result<InterceptStates, Status>> + Send>>;

    async fn serve_intercepts(
        &self,
        request: Request<Streaming<LocalIntercepts>>,
    ) -> Result<Response<Self::ServeInterceptsStream>, Status> {
        let served = self.served.as_ref();
        let served = served.ok_or_else(|| Status::failed_precondition(NO_INTERCEPTS))?;
        let states = intercepts::states(served.begin(), self.model.clone(), request.into_inner());

        Ok(Response::new(Box::pin(states)))
    }
}

#[cfg(test)]
mod tests;

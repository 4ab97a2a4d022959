//! Keeps a session's credentials fresh: logs in again every hour, and renews the Session object.
//!
//! A renewal is an object of its own, made like any Session, so that the API server vouches for the
//! user's current groups. The kubeconfig is read again for it, because people, and tools that
//! log in for them, write new credentials there while the session runs.

use std::{convert::Infallible, sync::Arc, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::{SESSION_LIFETIME_SECONDS, SESSION_RENEWAL_INTERVAL_SECONDS, UserInfo},
    fault::{Fault, FaultKind},
    local::{ConnectRequest, Shell},
};
use tp_transport::{KeyHash, SessionRef};

use super::{
    cluster::{Cluster, Destination},
    shared::Shared,
};

const RENEWAL_INTERVAL: Duration = Duration::from_secs(SESSION_RENEWAL_INTERVAL_SECONDS);
const SESSION_LIFETIME: Duration = Duration::from_secs(SESSION_LIFETIME_SECONDS.unsigned_abs());
/// With less than this left, the user is told that the session will end.
const WARNING_LIFETIME: Duration = Duration::from_secs(3600);
/// The runtime's timers stand still while the machine sleeps, so the clock is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
const MIN_RETRY_BACKOFF: Duration = Duration::from_secs(5);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(300);
/// Bounds the credential plugins of the kubeconfig.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The API server with the newest credentials of one user.
pub(super) struct Login {
    request: ConnectRequest,
    username: String,
    cluster: watch::Sender<Arc<Cluster>>,
}

impl Login {
    pub(super) fn new(request: ConnectRequest, username: &str, cluster: Arc<Cluster>) -> Self {
        // The kubeconfig's current context may change; this one stays.
        let request = ConnectRequest {
            context: cluster.destination.context.clone(),
            namespace: cluster.destination.namespace.clone(),
            // A new login, not the one of the request.
            shell: request.shell.map(|shell| Shell {
                credential: Vec::new(),
                ..shell
            }),
            ..request
        };
        Self {
            request,
            username: username.to_owned(),
            cluster: watch::Sender::new(cluster),
        }
    }

    pub(super) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow())
    }

    /// The user with the current groups, by the credentials at hand.
    pub(super) async fn user(&self) -> Result<UserInfo, Fault> {
        match self.ask(&self.cluster()).await {
            // They have expired or were revoked; the kubeconfig may have new ones.
            Err(fault) if matches!(fault.kind, FaultKind::NoPermission | FaultKind::Config) => {
                self.fresh_user().await
            }
            asked => asked,
        }
    }

    /// As [`Login::user`], with the kubeconfig read again.
    async fn fresh_user(&self) -> Result<UserInfo, Fault> {
        if let Some(fresh) = self.reload().await {
            match self.ask(&fresh).await {
                Ok(user) => {
                    self.cluster.send_replace(fresh);
                    return Ok(user);
                }
                Err(fault) => {
                    tracing::info!(reason = %fault, "Kubeconfig as it is now cannot be used");
                }
            }
        }

        self.ask(&self.cluster()).await
    }

    async fn ask(&self, cluster: &Cluster) -> Result<UserInfo, Fault> {
        let user = cluster.user().await?;
        if user.username == self.username {
            return Ok(user);
        }
        Err(Fault::new(
            FaultKind::Config,
            format!(
                "context {} logs in as {}, and this is a session of {}: run `tp quit` and `tp \
                 connect` to go on as the other",
                cluster.destination.context, user.username, self.username
            ),
        ))
    }

    /// Reads the kubeconfig again; `None` if it is unusable or leads to another destination.
    async fn reload(&self) -> Option<Arc<Cluster>> {
        let loaded = match timeout(RELOAD_TIMEOUT, Cluster::load(&self.request)).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(fault)) => {
                tracing::info!(reason = %fault, "Kubeconfig cannot be used any more");
                return None;
            }
            Err(_) => {
                tracing::info!("Kubeconfig not read in time");
                return None;
            }
        };

        let destination = Destination {
            // The groups may differ.
            impersonate_groups: self.cluster().destination.impersonate_groups.clone(),
            ..loaded.destination.clone()
        };

        (destination == self.cluster().destination).then(|| Arc::new(loaded))
    }
}

/// Renews one Session object.
pub(super) struct Renewal {
    pub(super) login: Arc<Login>,
    pub(super) shared: Arc<Shared>,
    pub(super) session: SessionRef,
    pub(super) key: KeyHash,
    /// The newest renewal object.
    pub(super) newest: Option<SessionRef>,
}

/// The clock, the API server and the user, as far as a renewal needs them.
pub(super) trait World {
    /// A clock that goes on while the machine sleeps.
    fn clock(&self) -> Duration;
    fn pause(&mut self, pause: Duration) -> impl Future<Output = ()> + Send;
    fn renew(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Tells the user `reason`, or withdraws the last one.
    fn report(&mut self, reason: Option<String>);
}

/// Renews a session that was just created, for as long as it is polled.
pub(super) async fn keep(mut world: impl World) -> Infallible {
    let mut backoff = Backoff::new(MIN_RETRY_BACKOFF, MAX_RETRY_BACKOFF);
    let mut renewed = world.clock();
    loop {
        let age = world.clock().saturating_sub(renewed);
        if age < RENEWAL_INTERVAL {
            world.pause(POLL_INTERVAL.min(RENEWAL_INTERVAL - age)).await;
            continue;
        }
        // A lifetime counts from the creation of the object, which is later.
        let begun = world.clock();
        match world.renew().await {
            Ok(()) => {
                renewed = begun;
                backoff.reset();
                world.report(None);
                tracing::debug!("Session renewed");
            }
            Err(fault) => {
                tracing::info!(reason = %fault, "Session not renewed, trying again");
                let left = SESSION_LIFETIME.saturating_sub(world.clock().saturating_sub(renewed));
                if left < WARNING_LIFETIME {
                    world.report(Some(ending(left, &fault)));
                }
                world.pause(backoff.pause(fastrand::f64())).await;
            }
        }
    }
}

fn ending(left: Duration, fault: &Fault) -> String {
    format!(
        "the session ends in {} min unless it can be renewed: {fault}",
        left.as_secs() / 60
    )
}

impl World for Renewal {
    fn clock(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        Duration::from_secs(now.tv_sec.unsigned_abs())
    }

    async fn pause(&mut self, pause: Duration) {
        sleep(pause).await;
    }

    async fn renew(&mut self) -> Result<(), Fault> {
        let user = self.login.fresh_user().await?;
        let cluster = self.login.cluster();
        let renewal = cluster
            .renew_session(&self.session, user, &self.key)
            .await?;
        if let Some(previous) = self.newest.replace(renewal) {
            cluster.delete_session(&previous.name).await;
        }

        Ok(())
    }

    fn report(&mut self, reason: Option<String>) {
        self.shared.reason.send_replace(reason.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;

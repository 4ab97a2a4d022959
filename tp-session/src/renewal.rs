//! Keeps a session's credentials young: logs in again every hour, and renews the Session object.
//!
//! A renewal is an object of its own, made like any Session, so that the API server vouches for the
//! user's groups of the day. The kubeconfig is read again for it, because people, and tools that
//! log in for them, write new credentials there while the session runs.

use std::{convert::Infallible, sync::Arc, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tp_core::backoff::Backoff;
use tp_proto::{
    crd::{SESSION_LIFETIME_SECONDS, SESSION_RENEWAL_SECONDS, UserInfo},
    fault::{Fault, FaultKind},
    local::{ConnectRequest, Shell},
};
use tp_transport::{KeyHash, SessionRef};

use super::{
    cluster::{Cluster, Place},
    shared::Shared,
};

const INTERVAL: Duration = Duration::from_secs(SESSION_RENEWAL_SECONDS);
const LIFETIME: Duration = Duration::from_secs(SESSION_LIFETIME_SECONDS.unsigned_abs());
/// From here on people are told that the session will end.
const NEAR: Duration = Duration::from_secs(3600);
/// The runtime's timers stand still while the machine sleeps: the clock is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// For programs that the kubeconfig names to log in with.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

/// The API server with the newest credentials of one user.
pub(super) struct Login {
    request: ConnectRequest,
    username: String,
    cluster: watch::Sender<Arc<Cluster>>,
}

impl Login {
    pub(super) fn new(request: ConnectRequest, username: &str, cluster: Arc<Cluster>) -> Self {
        // Whatever becomes the current context: this is the one.
        let request = ConnectRequest {
            context: cluster.place.context.clone(),
            namespace: cluster.place.namespace.clone(),
            // The login of the day, not of then.
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

    /// The user with the groups of the day, by the credentials that are there.
    pub(super) async fn user(&self) -> Result<UserInfo, Fault> {
        match self.ask(&self.cluster()).await {
            // They have run out, or were taken back: perhaps there are new ones.
            Err(fault) if matches!(fault.kind, FaultKind::NoPermission | FaultKind::Config) => {
                self.fresh_user().await
            }
            asked => asked,
        }
    }

    /// As [`Login::user`], by what the kubeconfig says now.
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
                cluster.place.context, user.username, self.username
            ),
        ))
    }

    /// Nothing if it leads elsewhere by now, or nowhere.
    async fn reload(&self) -> Option<Arc<Cluster>> {
        let loaded = match timeout(RELOAD_LIMIT, Cluster::load(&self.request)).await {
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

        let place = Place {
            // What the user's groups are is the question.
            impersonate_groups: self.cluster().place.impersonate_groups.clone(),
            ..loaded.place.clone()
        };

        (place == self.cluster().place).then(|| Arc::new(loaded))
    }
}

/// Renews one Session object.
pub(super) struct Renewal {
    pub(super) login: Arc<Login>,
    pub(super) shared: Arc<Shared>,
    pub(super) session: SessionRef,
    pub(super) key: KeyHash,
    /// The newest renewal that stands.
    pub(super) newest: Option<SessionRef>,
}

/// What keeping a session renewed takes of the world.
pub(super) trait World {
    /// Goes on while the machine sleeps.
    fn clock(&self) -> Duration;
    fn pause(&mut self, pause: Duration) -> impl Future<Output = ()> + Send;
    fn renew(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;
    /// Tells people, or takes back what they were told.
    fn tell(&mut self, reason: Option<String>);
}

/// Renews the session that was made just now for as long as it is polled.
pub(super) async fn keep(mut world: impl World) -> Infallible {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut renewed = world.clock();
    loop {
        let age = world.clock().saturating_sub(renewed);
        if age < INTERVAL {
            world.pause(LOOK.min(INTERVAL - age)).await;
            continue;
        }
        // A lifetime counts from when the object is made, which is later.
        let begun = world.clock();
        match world.renew().await {
            Ok(()) => {
                renewed = begun;
                backoff.reset();
                world.tell(None);
                tracing::debug!("Session renewed");
            }
            Err(fault) => {
                tracing::info!(reason = %fault, "Session not renewed, trying again");
                let left = LIFETIME.saturating_sub(world.clock().saturating_sub(renewed));
                if left < NEAR {
                    world.tell(Some(ending(left, &fault)));
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

    fn tell(&mut self, reason: Option<String>) {
        self.shared.reason.send_replace(reason.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;

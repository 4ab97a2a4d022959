//! Dials for one session, and ends flows whose right was revoked.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tp_process::sync;
use tp_proto::{allow::Allow, tunnel::Outcome};
use tp_transport::{PendingFlow, SessionRef, SpliceCounters, dial_outcome, keep_alive, splice};

use super::{
    slots::{Slots, Turn},
    target::{self, DialRefusal},
};
use crate::{
    access::{Access, Review, Scope, User},
    intercepts::container_calls::{ContainerCall, ContainerCalls},
    model::SharedModel,
};

/// As long as Linux tries by default.
const DIAL_TIMEOUT: Duration = Duration::from_secs(130);

pub(super) struct Dialler {
    /// From the newest renewal of the session.
    pub(super) user: watch::Receiver<Arc<User>>,
    pub(super) session: SessionRef,
    pub(super) calls: Arc<ContainerCalls>,
    pub(super) access: Arc<Access>,
    pub(super) model: SharedModel,
    pub(super) allow: Vec<Allow>,
    pub(super) rights: ActiveRights,
    pub(super) slots: Slots,
}

impl Dialler {
    /// Serves one flow, from its dial to its end.
    pub(super) async fn serve(&self, target: SocketAddr, to_container: bool, pending: PendingFlow) {
        let cancelled = pending.cancelled();
        let dialled = tokio::select! {
            () = cancelled => return,
            dialled = self.dial(target, to_container) => dialled,
        };
        let Dialled {
            tcp,
            call: _call,
            active_right,
            pending_review,
        } = match dialled {
            Ok(dialled) => dialled,
            Err(refusal) => {
                tracing::debug!(%target, outcome = ?refusal.outcome, "Dial refused");
                pending.refuse(refusal.outcome, &refusal.reason).await;
                return;
            }
        };
        let Ok(flow) = pending.accept().await else {
            return;
        };
        let counters = SpliceCounters::default();
        tokio::select! {
            // Dropping the splice resets both ends.
            () = active_right.token.cancelled() => tracing::debug!(%target, "Right revoked"),
            end = splice(tcp, flow, &counters) => tracing::trace!(%target, ?end, "Flow ended"),
            never = self.await_review(pending_review, &active_right.scope) => match never {},
        }
    }

    /// Revokes the right if the review denies it, unless the user's groups have changed meanwhile.
    async fn await_review(
        &self,
        pending_review: Option<(Arc<User>, Review)>,
        scope: &Scope,
    ) -> Infallible {
        if let Some((user, review)) = pending_review
            && let Ok(false) = review.outcome().await
            && *self.user.borrow() == user
        {
            self.rights.revoke(scope);
        }

        pending().await
    }

    async fn dial(
        &self,
        target: SocketAddr,
        to_container: bool,
    ) -> Result<Dialled<'_>, DialRefusal> {
        let address = target.ip();
        let owner = self.model.settled_owner(address).await;
        let scope = target::scope(owner, address, &self.session.namespace, &self.allow)?;
        // Registered before the review, so that no revocation is missed.
        let active_right = self.rights.register(&scope);
        let user = Arc::clone(&self.user.borrow());
        let right = self.access.right_for_dial(&user, &scope).await;
        let right = match right {
            Ok(right) if right.allowed => right,
            Ok(_) => return Err(DialRefusal::without(&scope)),
            Err(error) => {
                tracing::debug!(%error, "Cannot ask for a right");
                return Err(DialRefusal::new(Outcome::Prohibited, error.to_string()));
            }
        };

        let connected = timeout(DIAL_TIMEOUT, self.connect(target, to_container)).await;
        // Also before a refusal is passed on: only users with the right may learn that a port is
        // closed.
        if !right.is_settled().await {
            return Err(DialRefusal::without(&scope));
        }
        let pending_review = right.review.map(|review| (user, review));
        match connected {
            Ok(Ok((tcp, call))) => {
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::trace!(%error, "Connection keeps its delay");
                }
                if let Err(error) = keep_alive(&tcp) {
                    tracing::debug!(%error, "Quiet connection not probed");
                }
                Ok(Dialled {
                    tcp,
                    call,
                    active_right,
                    pending_review,
                })
            }
            Ok(Err(error)) => Err(DialRefusal::new(dial_outcome(&error), error.to_string())),
            Err(_) => Err(DialRefusal::new(Outcome::TimedOut, "nothing answers")),
        }
    }

    /// Dials until the target or the kernel answers, in as many turns as it takes.
    async fn connect(
        &self,
        target: SocketAddr,
        to_container: bool,
    ) -> io::Result<(TcpStream, Option<ContainerCall>)> {
        let mut turn = Turn::First;
        loop {
            let slot = self.slots.enter(target.ip(), turn).await;
            tokio::select! {
                // Polled first, so that a dial that was answered is not repeated.
                biased;
                connected = self.connect_once(target, to_container) => return connected,
                () = slot.wanted() => turn = Turn::Again,
            }
        }
    }

    async fn connect_once(
        &self,
        target: SocketAddr,
        to_container: bool,
    ) -> io::Result<(TcpStream, Option<ContainerCall>)> {
        if to_container {
            let marked = self.calls.socket(target, &self.session);
            // Dialled as anybody is, the handler would call itself.
            let (socket, call) = marked.map_err(|error| {
                let reason = format!("no socket for a call to the container: {error}");
                io::Error::new(io::ErrorKind::AddrNotAvailable, reason)
            })?;

            return Ok((socket.connect(target).await?, Some(call)));
        }

        Ok((TcpStream::connect(target).await?, None))
    }

    /// Reviews every right in use, and ends the flows of those revoked.
    pub(super) async fn recheck(&self) {
        for scope in self.rights.in_use() {
            let user = Arc::clone(&self.user.borrow());
            match self.access.allows(&user, &scope).await {
                Ok(true) => {}
                Ok(false) => self.rights.revoke(&scope),
                Err(error) => tracing::debug!(%error, "Cannot ask again for a right"),
            }
        }
    }
}

/// A connection and its right, with the review that may be under way.
struct Dialled<'a> {
    tcp: TcpStream,
    call: Option<ContainerCall>,
    active_right: ActiveRight<'a>,
    pending_review: Option<(Arc<User>, Review)>,
}

/// The rights that flows of a session use.
#[derive(Debug, Default)]
pub(super) struct ActiveRights(Mutex<BTreeMap<Scope, RightUse>>);

#[derive(Debug, Default)]
struct RightUse {
    count: usize,
    token: CancellationToken,
}

/// One flow's use of a right; released when dropped.
struct ActiveRight<'a> {
    rights: &'a ActiveRights,
    scope: Scope,
    token: CancellationToken,
}

impl ActiveRights {
    fn register(&self, scope: &Scope) -> ActiveRight<'_> {
        let mut rights = self.lock();
        let uses = rights.entry(scope.clone()).or_default();
        uses.count += 1;

        ActiveRight {
            rights: self,
            scope: scope.clone(),
            token: uses.token.clone(),
        }
    }

    fn in_use(&self) -> Vec<Scope> {
        self.lock().keys().cloned().collect()
    }

    /// Ends every flow that uses the right; later flows ask again.
    fn revoke(&self, scope: &Scope) {
        if let Some(uses) = self.lock().get_mut(scope) {
            uses.token.cancel();
            uses.token = CancellationToken::new();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Scope, RightUse>> {
        sync::lock(&self.0)
    }
}

impl Drop for ActiveRight<'_> {
    fn drop(&mut self) {
        let mut rights = self.rights.lock();
        if let Some(uses) = rights.get_mut(&self.scope) {
            uses.count -= 1;
            if uses.count == 0 {
                rights.remove(&self.scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::{Client, client::Body};
    use tp_proto::crd::UserInfo;

    use super::*;

    fn shop() -> Scope {
        Scope::Namespace("shop".into())
    }

    #[test]
    fn a_revoked_right_ends_the_flows_that_rest_on_it_and_no_later_ones() {
        let rights = ActiveRights::default();
        let flow = rights.register(&shop());
        let other = rights.register(&Scope::AllNamespaces);

        rights.revoke(&shop());

        assert!(flow.token.is_cancelled());
        assert!(!other.token.is_cancelled());
        assert!(!rights.register(&shop()).token.is_cancelled());
    }

    #[test]
    fn a_right_that_no_flow_rests_on_is_not_asked_for_again() {
        let rights = ActiveRights::default();

        let first = rights.register(&shop());
        let second = rights.register(&shop());
        drop(first);
        assert_eq!(rights.in_use(), [shop()]);
        drop(second);
        assert_eq!(rights.in_use(), []);
    }

    #[tokio::test]
    async fn a_call_to_the_container_without_a_socket_of_its_own_is_not_dialled() {
        let nobody = tower::service_fn(|_: http::Request<Body>| {
            pending::<Result<http::Response<Body>, Infallible>>()
        });
        let (_, user) = watch::channel(Arc::new(User::new(UserInfo::default())));
        let dialler = Dialler {
            user,
            session: SessionRef {
                namespace: "shop".into(),
                name: "alice".into(),
                uid: "s1".into(),
            },
            calls: Arc::default(),
            access: Access::new(Client::new(nobody, "default")),
            model: SharedModel::new(),
            allow: Vec::new(),
            rights: ActiveRights::default(),
            slots: Slots::default(),
        };
        // No socket is connected to all.
        let target = "255.255.255.255:80".parse().unwrap();
        let outcome = async |to_container| {
            let connected = dialler.connect_once(target, to_container).await;
            dial_outcome(&connected.map(drop).unwrap_err())
        };

        assert_eq!(outcome(true).await, Outcome::Exhausted);
        assert_ne!(outcome(false).await, Outcome::Exhausted);
    }
}

//! Dials for one session, and ends what it may not reach any more.

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
use tp_proto::{allow::Allow, tunnel::Outcome};
use tp_transport::{PendingFlow, SpliceCounters, keep_alive, splice};

use super::{
    slots::{Slots, Turn},
    target::{self, Refusal},
};
use crate::{
    access::{Access, Review, Scope, User},
    model::SharedModel,
    sync,
};

/// As long as Linux itself tries by default.
const DIAL_TIMEOUT: Duration = Duration::from_secs(130);

pub(super) struct Dialler {
    /// As the newest renewal of the session has it.
    pub(super) user: watch::Receiver<Arc<User>>,
    /// The session's own namespace.
    pub(super) namespace: String,
    pub(super) access: Arc<Access>,
    pub(super) model: SharedModel,
    pub(super) allow: Vec<Allow>,
    pub(super) grants: Grants,
    pub(super) slots: Slots,
}

impl Dialler {
    /// One flow, from its dial to its end.
    pub(super) async fn serve(&self, target: SocketAddr, pending: PendingFlow) {
        let cancelled = pending.cancelled();
        let dialled = tokio::select! {
            () = cancelled => return,
            dialled = self.dial(target) => dialled,
        };
        let Dialled { tcp, grant, asked } = match dialled {
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
            () = grant.token.cancelled() => tracing::debug!(%target, "Right revoked"),
            end = splice(tcp, flow, &counters) => tracing::trace!(%target, ?end, "Flow ended"),
            never = self.follow(asked, &grant.scope) => match never {},
        }
    }

    /// Revokes the right if it turns out that it is gone, unless the user has other groups by now.
    async fn follow(&self, asked: Option<(Arc<User>, Review)>, scope: &Scope) -> Infallible {
        if let Some((user, review)) = asked
            && let Ok(false) = review.outcome().await
            && *self.user.borrow() == user
        {
            self.grants.revoke(scope);
        }

        pending().await
    }

    async fn dial(&self, target: SocketAddr) -> Result<Dialled<'_>, Refusal> {
        let address = target.ip();
        let owner = self.model.settled_owner(address).await;
        let scope = target::scope(owner, address, &self.namespace, &self.allow)?;
        // Entered before it is asked for, so that no revocation falls between.
        let grant = self.grants.enter(&scope);
        let user = Arc::clone(&self.user.borrow());
        let right = self.access.at_once(&user, &scope).await;
        let right = match right {
            Ok(right) if right.allowed => right,
            Ok(_) => return Err(Refusal::without(&scope)),
            Err(error) => {
                tracing::debug!(%error, "Cannot ask for a right");
                return Err(Refusal::new(Outcome::Prohibited, error.to_string()));
            }
        };

        let connected = timeout(DIAL_TIMEOUT, self.connect(target)).await;
        // Also before a refusal is passed on: that a port is closed is for those who have the right.
        if !right.is_settled().await {
            return Err(Refusal::without(&scope));
        }
        let asked = right.review.map(|review| (user, review));
        match connected {
            Ok(Ok(tcp)) => {
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::trace!(%error, "Connection keeps its delay");
                }
                if let Err(error) = keep_alive(&tcp) {
                    tracing::debug!(%error, "Quiet connection not probed");
                }
                Ok(Dialled { tcp, grant, asked })
            }
            Ok(Err(error)) => Err(Refusal::new(outcome(&error), error.to_string())),
            Err(_) => Err(Refusal::new(Outcome::TimedOut, "nothing answers")),
        }
    }

    /// Tries until the target or the kernel has said something, in as many turns as it takes.
    async fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let mut turn = Turn::First;
        loop {
            let slot = self.slots.enter(target.ip(), turn).await;
            tokio::select! {
                // First: what has answered is not asked again.
                biased;
                connected = TcpStream::connect(target) => return connected,
                () = slot.wanted() => turn = Turn::Again,
            }
        }
    }

    /// Asks again for every right in use, and ends the flows of those that are gone.
    pub(super) async fn recheck(&self) {
        for scope in self.grants.in_use() {
            let user = Arc::clone(&self.user.borrow());
            match self.access.allows(&user, &scope).await {
                Ok(true) => {}
                Ok(false) => self.grants.revoke(&scope),
                Err(error) => tracing::debug!(%error, "Cannot ask again for a right"),
            }
        }
    }
}

/// A connection, and the right that it rests on, which may still be asked for.
struct Dialled<'a> {
    tcp: TcpStream,
    grant: Grant<'a>,
    asked: Option<(Arc<User>, Review)>,
}

/// The kernel's word for how a dial ended.
fn outcome(error: &io::Error) -> Outcome {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;

    if let Some(ENFILE | EMFILE) = error.raw_os_error() {
        return Outcome::Exhausted;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::HostUnreachable => Outcome::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => Outcome::NetworkUnreachable,
        io::ErrorKind::TimedOut => Outcome::TimedOut,
        // A firewall's "prohibited", or a policy of the pod network.
        io::ErrorKind::PermissionDenied => Outcome::HostUnreachable,
        io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::AddrNotAvailable => Outcome::Exhausted,
        _ => Outcome::HostUnreachable,
    }
}

/// The rights that flows of a session rest on.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<BTreeMap<Scope, Uses>>);

#[derive(Debug, Default)]
struct Uses {
    count: usize,
    token: CancellationToken,
}

/// One flow's part in a right; gives it back when dropped.
struct Grant<'a> {
    grants: &'a Grants,
    scope: Scope,
    token: CancellationToken,
}

impl Grants {
    fn enter(&self, scope: &Scope) -> Grant<'_> {
        let mut grants = self.lock();
        let uses = grants.entry(scope.clone()).or_default();
        uses.count += 1;

        Grant {
            grants: self,
            scope: scope.clone(),
            token: uses.token.clone(),
        }
    }

    fn in_use(&self) -> Vec<Scope> {
        self.lock().keys().cloned().collect()
    }

    /// Ends every flow that rests on it; later flows ask anew.
    fn revoke(&self, scope: &Scope) {
        if let Some(uses) = self.lock().get_mut(scope) {
            uses.token.cancel();
            uses.token = CancellationToken::new();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Scope, Uses>> {
        sync::lock(&self.0)
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let mut grants = self.grants.lock();
        if let Some(uses) = grants.get_mut(&self.scope) {
            uses.count -= 1;
            if uses.count == 0 {
                grants.remove(&self.scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Scope {
        Scope::Namespace("shop".into())
    }

    #[test]
    fn a_revoked_right_ends_the_flows_that_rest_on_it_and_no_later_ones() {
        let grants = Grants::default();
        let flow = grants.enter(&shop());
        let other = grants.enter(&Scope::AllNamespaces);

        grants.revoke(&shop());

        assert!(flow.token.is_cancelled());
        assert!(!other.token.is_cancelled());
        assert!(!grants.enter(&shop()).token.is_cancelled());
    }

    #[test]
    fn a_right_that_no_flow_rests_on_is_not_asked_for_again() {
        let grants = Grants::default();

        let first = grants.enter(&shop());
        let second = grants.enter(&shop());
        drop(first);
        assert_eq!(grants.in_use(), [shop()]);
        drop(second);
        assert_eq!(grants.in_use(), []);
    }

    #[test]
    fn the_kernels_word_is_passed_on() {
        let of = |errno| outcome(&io::Error::from_raw_os_error(errno));

        assert_eq!(of(111), Outcome::Refused);
        assert_eq!(of(113), Outcome::HostUnreachable);
        assert_eq!(of(101), Outcome::NetworkUnreachable);
        assert_eq!(of(110), Outcome::TimedOut);
        assert_eq!(of(24), Outcome::Exhausted);
    }
}

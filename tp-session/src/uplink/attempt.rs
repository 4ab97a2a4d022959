//! One attempt per replica, and the race between them.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared as SharedFuture},
    stream::FuturesUnordered,
};
use tokio::time::sleep;
use tp_proto::{
    crd::UserInfo,
    fault::{Fault, FaultKind},
};
use tp_transport::{Identity, SessionRef};

use super::{
    super::cluster::{Cluster, Replica, is_refusal, session_name},
    session_objects::SessionObjects,
};

/// The head start of a replica before another one is tried beside it.
const NEXT_REPLICA_DELAY: Duration = Duration::from_secs(1);

/// A connection to one replica, with its own Session: a replica deletes the Session of a connection that
/// leaves it.
pub(super) struct Attempt<'a> {
    pub(super) cluster: Arc<Cluster>,
    pub(super) replica: &'a Replica,
    pub(super) identity: Identity,
    name: String,
    objects: &'a SessionObjects,
    pub(super) session: SharedFuture<BoxFuture<'a, Result<SessionRef, Fault>>>,
}

impl<'a> Attempt<'a> {
    /// Begins when it is polled.
    pub(super) fn new(
        cluster: Arc<Cluster>,
        user: &UserInfo,
        replica: &'a Replica,
        identity: Identity,
        objects: &'a SessionObjects,
    ) -> Self {
        let (maker, user, key) = (Arc::clone(&cluster), user.clone(), identity.clone());
        let name = session_name(&user, &identity);
        let object = name.clone();
        let session = async move {
            objects.begin(&object);
            let created = maker.create_session(&object, &user, &key).await;
            match &created {
                Ok(_) => objects.answered(&object),
                Err(fault) if is_refusal(fault) => objects.refused(&object),
                // The API server may have created it.
                Err(_) => {}
            }
            created
        };

        Self {
            cluster,
            replica,
            identity,
            name,
            objects,
            session: session.boxed().shared(),
        }
    }

    /// Waits for the API server's answer and deletes the Session object if there is one.
    pub(super) async fn withdraw(&self) {
        if self.session.clone().await.is_ok() {
            self.objects.delete(&self.cluster, &self.name).await;
        }
    }
}

/// The error of an attempt.
#[derive(Debug)]
pub(super) struct Failure {
    fault: Fault,
    /// Another replica may serve.
    is_of_replica: bool,
}

impl Failure {
    /// A missing right to forward a port, for example, which is granted per replica.
    pub(super) fn of_replica(fault: Fault) -> Self {
        Self {
            fault,
            is_of_replica: true,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self {
            // No port can be forwarded to a node that is gone.
            is_of_replica: matches!(
                fault.kind,
                FaultKind::TemporaryFailure | FaultKind::Unavailable
            ),
            fault,
        }
    }
}

/// Returns the first of `attempts` that succeeds, and how many have begun. An attempt begins when those
/// before it have failed for a reason of their replica, or have had their head start. The others are
/// dropped. `None` if `attempts` is empty.
pub(super) async fn race<T>(
    attempts: Vec<BoxFuture<'_, Result<T, Failure>>>,
) -> (Option<Result<T, Fault>>, usize) {
    let mut left = attempts.into_iter();
    let mut running = FuturesUnordered::new();
    let (mut failure, mut begun) = (None, 0);
    loop {
        if let Some(attempt) = left.next() {
            running.push(attempt);
            begun += 1;
        }
        let result = tokio::select! {
            result = running.next() => result,
            () = sleep(NEXT_REPLICA_DELAY), if left.len() > 0 => continue,
        };
        match result {
            Some(Ok(opened)) => return (Some(Ok(opened)), begun),
            Some(Err(Failure {
                fault,
                is_of_replica,
            })) => {
                // Running attempts may still succeed; no further one is begun in vain.
                if !is_of_replica {
                    left = Vec::new().into_iter();
                }
                failure = Some(Err(fault));
            }
            None => return (failure, begun),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::timeout;

    use super::*;

    type Attempt = BoxFuture<'static, Result<u8, Failure>>;

    async fn first(attempts: Vec<Attempt>) -> Option<Result<u8, Fault>> {
        let limit = Duration::from_secs(10);

        timeout(limit, race(attempts)).await.expect("it ends").0
    }

    fn answered(result: Result<u8, FaultKind>) -> Attempt {
        ready(result.map_err(|kind| Fault::new(kind, "no").into())).boxed()
    }

    #[tokio::test]
    async fn a_replica_that_says_nothing_is_not_waited_for() {
        let attempts = vec![pending().boxed(), answered(Ok(2)), answered(Ok(3))];

        assert_eq!(first(attempts).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn what_another_replica_may_do_better_is_tried_there() {
        for (kind, expected) in [
            (FaultKind::TemporaryFailure, Some(Ok(2))),
            (FaultKind::Unavailable, Some(Ok(2))),
            (
                FaultKind::NoPermission,
                Some(Err(Fault::new(FaultKind::NoPermission, "no"))),
            ),
        ] {
            assert_eq!(
                first(vec![answered(Err(kind)), answered(Ok(2))]).await,
                expected
            );
        }
        let forbidden = Failure::of_replica(Fault::new(FaultKind::NoPermission, "no"));
        let attempts = vec![ready(Err(forbidden)).boxed(), answered(Ok(2))];
        assert_eq!(first(attempts).await, Some(Ok(2)));
        let failure = Fault::new(FaultKind::Unavailable, "no");
        let all = vec![
            answered(Err(FaultKind::TemporaryFailure)),
            answered(Err(FaultKind::Unavailable)),
        ];
        assert_eq!(first(all).await, Some(Err(failure)));
    }
}

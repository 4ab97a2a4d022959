//! Sessions that were connected here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use tp_process::sync;
use tp_transport::SessionRef;

/// A client that was not killed deletes its Session itself before this. The tunnel has already
/// waited for a silent client.
pub(crate) const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// Sessions whose connection to this replica has ended.
#[derive(Debug, Default)]
pub(crate) struct Disconnected(Mutex<BTreeMap<SessionRef, (Instant, Timestamp)>>);

impl Disconnected {
    pub(crate) fn insert(&self, session: SessionRef) {
        let now = (Instant::now(), Timestamp::now());
        self.lock().insert(session, now);
    }

    pub(crate) fn remove(&self, session: &SessionRef) {
        self.lock().remove(session);
    }

    /// Since when this Session has been without its connection to this replica.
    pub(crate) fn since(&self, session: &SessionRef) -> Option<Timestamp> {
        self.lock().get(session).map(|(_, since)| *since)
    }

    /// The Sessions that have been disconnected for longer than each may be. They stay until they are
    /// removed: a deletion may fail.
    pub(crate) fn abandoned(
        &self,
        now: Instant,
        limit: impl Fn(&SessionRef) -> Duration,
    ) -> Vec<SessionRef> {
        let disconnected = self.lock().clone();
        let gone = disconnected
            .into_iter()
            .filter(|(session, (since, _))| now.duration_since(*since) > limit(session));

        gone.map(|(session, _)| session).collect()
    }

    /// Forgets the Sessions of which this is not true.
    pub(crate) fn retain(&self, exists: impl Fn(&SessionRef) -> bool) {
        self.lock().retain(|session, _| exists(session));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionRef, (Instant, Timestamp)>> {
        sync::lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_stays_away_is_abandoned_until_its_deletion_succeeds() {
        let session = |name: &str| SessionRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
        };
        let disconnected = Disconnected::default();
        for name in ["a", "b", "intercepting"] {
            disconnected.insert(session(name));
        }
        disconnected.remove(&session("b"));
        let limit = |session: &SessionRef| match session.name.as_str() {
            "intercepting" => Duration::from_secs(600),
            _ => ABANDONED_AFTER,
        };
        let abandoned = |after| disconnected.abandoned(Instant::now() + after, limit);

        assert!(abandoned(Duration::ZERO).is_empty());
        let later = ABANDONED_AFTER + Duration::from_secs(1);
        assert_eq!(abandoned(later), [session("a")]);
        assert_eq!(abandoned(later), [session("a")], "it was not deleted");
        disconnected.retain(|it| it.name != "a");
        let much_later = Duration::from_secs(601);
        assert_eq!(abandoned(much_later), [session("intercepting")]);
    }
}

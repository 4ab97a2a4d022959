//! Sessions that were connected here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;
use tp_process::sync;
use tp_transport::SessionRef;

/// A client that was not killed deletes its Session itself before this. The tunnel has already
/// waited for a silent client.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// Sessions whose connection to this replica has ended.
#[derive(Debug, Default)]
pub(crate) struct Disconnected(Mutex<BTreeMap<SessionRef, Instant>>);

impl Disconnected {
    pub(crate) fn insert(&self, session: SessionRef) {
        self.lock().insert(session, Instant::now());
    }

    pub(crate) fn remove(&self, session: &SessionRef) {
        self.lock().remove(session);
    }

    /// How long this Session has been without its connection to this replica.
    pub(crate) fn since(&self, session: &SessionRef) -> Option<Duration> {
        self.lock().get(session).map(Instant::elapsed)
    }

    /// Removes and returns the Sessions that have been disconnected for too long.
    pub(crate) fn take_abandoned(&self, now: Instant) -> Vec<SessionRef> {
        let mut disconnected = self.lock();
        let gone: Vec<SessionRef> = disconnected
            .iter()
            .filter(|(_, since)| now.duration_since(**since) > ABANDONED_AFTER)
            .map(|(session, _)| session.clone())
            .collect();
        for session in &gone {
            disconnected.remove(session);
        }

        gone
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionRef, Instant>> {
        sync::lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_stays_away_is_abandoned() {
        let session = |name: &str| SessionRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
        };
        let disconnected = Disconnected::default();
        disconnected.insert(session("a"));
        disconnected.insert(session("b"));
        disconnected.remove(&session("b"));

        assert!(disconnected.take_abandoned(Instant::now()).is_empty());
        let later = Instant::now() + ABANDONED_AFTER + Duration::from_secs(1);
        assert_eq!(disconnected.take_abandoned(later), [session("a")]);
    }
}

//! Intercepts that nobody can use again: their Session is gone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tp_process::sync::{lock, read};
use tp_transport::{SESSION_GONE_AFTER, SessionRef};

use super::{InterceptRecord, Intercepts, whereabouts::Here};

/// An Intercept may be known before its Session. By this replica's own clock: the API server's may
/// differ.
const ORPHAN_AFTER: Duration = Duration::from_secs(10);
/// A client that is silent for longer has lost its tunnel, wherever it was connected.
const TUNNEL_GONE_AFTER: Duration = SESSION_GONE_AFTER.saturating_add(Duration::from_secs(10));

impl Intercepts {
    /// Those whose Session was not there for some time. Whether it is gone is for the API server to say:
    /// a watch may be late.
    pub(crate) fn orphans(&self, now: Instant) -> Vec<Arc<InterceptRecord>> {
        let by_uid = read(&self.by_uid);
        let without = by_uid
            .values()
            .filter(|record| !self.sessions.exists(&record.session));
        let mut known = lock(&self.orphans);
        let before = std::mem::take(&mut *known);
        let mut orphans = Vec::new();
        for record in without {
            let since = before.get(&record.uid).copied().unwrap_or(now);
            if now.duration_since(since) >= ORPHAN_AFTER {
                orphans.push(Arc::clone(record));
            }
            known.insert(record.uid.clone(), since);
        }

        orphans
    }

    /// Sessions that Intercepts name, that an earlier process of this pod had, and that are away for too
    /// long.
    pub(crate) fn abandoned(&self) -> Vec<SessionRef> {
        let now = (jiff::Timestamp::now(), Instant::now());
        // A client may be silent for so long, and go on.
        let limit = self.whereabouts.release_after.max(TUNNEL_GONE_AFTER);
        let sessions = self.named_sessions().into_iter();
        let abandoned = sessions.filter(|(session, made)| {
            // For those that this process has had, the end of the tunnel counts.
            let here = self.here(session);
            if here != Here::Never || !self.whereabouts.had(&session.uid) {
                return false;
            }
            let away = self
                .whereabouts
                .disconnected(&session.uid, here, *made, now);

            away.is_some_and(|away| away >= limit)
        });

        abandoned.map(|(session, _)| session).collect()
    }

    /// How long a Session is kept that has no connection, which it will not have again.
    pub(crate) fn kept_for(&self, session: &SessionRef, without: Duration) -> Duration {
        let by_uid = read(&self.by_uid);
        let is_named = by_uid.values().any(|it| it.session == *session);

        match is_named {
            true => self.whereabouts.release_after.max(without),
            false => without,
        }
    }
}

/// When each was first seen without its Session, by UID.
pub(super) type Orphans = BTreeMap<String, Instant>;

//! What each Intercept holds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tp_core::intercept::holders::{Claimant, Standing, standings};
use tp_process::sync::{lock, read};
use tp_transport::SessionRef;

use super::{Intercepts, serving::SILENT_AFTER, whereabouts::Here};

/// Age of the standings at which they are derived again: Sessions expire without an event.
const LIFETIME: Duration = Duration::from_secs(2);

/// What each Intercept holds, as of one moment.
#[derive(Debug)]
pub(super) struct Standings {
    revisions: (u64, u64),
    derived: Instant,
    by_uid: Arc<BTreeMap<String, Standing>>,
}

impl Intercepts {
    /// What each Intercept holds: derived once for a change, not for each connection.
    pub(super) fn standings(&self) -> Arc<BTreeMap<String, Standing>> {
        let mut cached = lock(&self.standings);
        let revisions = (*self.revision.borrow(), *self.sessions.changes().borrow());
        if let Some(known) = &*cached
            && known.revisions == revisions
            && known.derived.elapsed() < LIFETIME
        {
            return Arc::clone(&known.by_uid);
        }
        let by_uid = Arc::new(self.derive(Timestamp::now(), Instant::now()));
        *cached = Some(Standings {
            revisions,
            derived: Instant::now(),
            by_uid: Arc::clone(&by_uid),
        });

        by_uid
    }

    pub(super) fn derive(&self, now: Timestamp, at: Instant) -> BTreeMap<String, Standing> {
        let by_uid = read(&self.by_uid);
        let mut made: BTreeMap<&SessionRef, Timestamp> = BTreeMap::new();
        let mut claims = Vec::new();
        let mut found = BTreeMap::new();
        for record in by_uid.values() {
            // Of each by itself: what one says of a Session must not count for another.
            let valid = self.sessions.revalidate(&record.session, None, now);
            let is_own = valid.is_ok_and(|valid| valid.user.is_same_person(&record.user));
            if is_own && self.sessions.is_covered(record.created) {
                let last = made.entry(&record.session).or_insert(record.created);
                *last = record.created.max(*last);
                claims.push((record.claim(), &record.session));
            } else {
                found.insert(record.uid.clone(), Standing::Orphan);
            }
        }
        let mut claimants = BTreeMap::new();
        for (claim, session) in &claims {
            let entry = claimants.entry(session.uid.as_str());
            entry.or_insert_with(|| Claimant {
                user: claim.user.clone(),
                disconnected: self.whereabouts.disconnected(
                    &session.uid,
                    self.here(session),
                    made[session],
                    (now, at),
                ),
            });
        }
        let held = standings(
            claims.iter().map(|(claim, _)| claim),
            |uid| claimants.get(uid).cloned(),
            self.whereabouts.release_after,
        );
        found.extend(held.into_iter().map(|(uid, it)| (uid.to_owned(), it)));

        found
    }

    /// Where a session is, as far as this replica has had it. One that is silent was killed, or its
    /// workstation is asleep.
    pub(super) fn here(&self, session: &SessionRef) -> Here {
        let served = lock(&self.served).get(session).cloned();
        let Some(served) = served else {
            let since = self.disconnected.since(session);
            return since.map_or(Here::Never, Here::Left);
        };
        let silent = served.peer.silent_for();
        if silent <= SILENT_AFTER {
            return Here::Connected;
        }
        let silent = SignedDuration::try_from(silent).unwrap_or(SignedDuration::MAX);

        Here::Left(Timestamp::now().saturating_sub(silent).unwrap_or_default())
    }

    /// The sessions that Intercepts name, with the time at which the last of these was made. An Intercept
    /// may name one that does not exist under the UID of one that does.
    pub(super) fn named_sessions(&self) -> BTreeMap<SessionRef, Timestamp> {
        let mut named = BTreeMap::new();
        for record in read(&self.by_uid).values() {
            let made = named
                .entry(record.session.clone())
                .or_insert(record.created);
            *made = record.created.max(*made);
        }

        named
    }
}

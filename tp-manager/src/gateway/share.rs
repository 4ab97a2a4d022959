//! What one session, and one user with all their sessions, may hold at once: nobody takes the
//! manager's room from the others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// Flows of one session, and of one user.
const SESSION_FLOWS: usize = 4096;
const USER_FLOWS: usize = 16_384;
/// Connected sessions of one user: a service account may serve many pipelines.
const USER_SESSIONS: usize = 256;

/// By the user's name.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<BTreeMap<String, Weak<UserShare>>>);

#[derive(Debug)]
struct UserShare {
    sessions: Arc<Semaphore>,
    flows: Arc<Semaphore>,
}

/// The share of one connected session; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    user: Arc<UserShare>,
    flows: Arc<Semaphore>,
    _session: OwnedSemaphorePermit,
}

/// One flow's place; given back when dropped.
#[derive(Debug)]
pub(super) struct FlowPermit {
    _session: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl Shares {
    /// The share of another session of `user`; the error is a sentence for them.
    pub(super) fn enter(&self, user: &str) -> Result<Share, String> {
        let share = self.of(user);
        let session = Arc::clone(&share.sessions)
            .try_acquire_owned()
            .map_err(|_| {
                format!(
                    "{user} has {USER_SESSIONS} sessions connected, as many as one user may: quit \
                     some of them"
                )
            })?;

        Ok(Share {
            user: share,
            flows: Arc::new(Semaphore::new(SESSION_FLOWS)),
            _session: session,
        })
    }

    fn of(&self, user: &str) -> Arc<UserShare> {
        let mut shares = lock(&self.0);
        if let Some(share) = shares.get(user).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(UserShare {
            sessions: Arc::new(Semaphore::new(USER_SESSIONS)),
            flows: Arc::new(Semaphore::new(USER_FLOWS)),
        });
        shares.insert(user.to_owned(), Arc::downgrade(&share));

        share
    }
}

impl Share {
    /// Room for another flow; the error is a sentence for the user.
    pub(super) fn flow(&self) -> Result<FlowPermit, String> {
        let session = Arc::clone(&self.flows).try_acquire_owned();
        let user = Arc::clone(&self.user.flows).try_acquire_owned();
        match (session, user) {
            (Ok(session), Ok(user)) => Ok(FlowPermit {
                _session: session,
                _user: user,
            }),
            (Err(_), _) => Err(format!(
                "this session has {SESSION_FLOWS} connections, as many as it may"
            )),
            (_, Err(_)) => Err(format!(
                "the sessions of this user have {USER_FLOWS} connections, as many as they may"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_refused_more_flows_than_its_share_and_others_are_not() {
        let shares = Shares::default();
        let (greedy, other) = (shares.enter("alice").unwrap(), shares.enter("bob").unwrap());
        let mut flows: Vec<_> = (0..SESSION_FLOWS).map(|_| greedy.flow().unwrap()).collect();

        let refused = greedy.flow().unwrap_err();

        assert_eq!(
            refused,
            "this session has 4096 connections, as many as it may"
        );
        assert!(other.flow().is_ok());
        flows.pop();
        assert!(greedy.flow().is_ok(), "a flow that ended gave its place");
    }

    #[test]
    fn many_sessions_give_a_user_no_more_flows() {
        let shares = Shares::default();
        let sessions: Vec<_> = (0..=USER_FLOWS / SESSION_FLOWS)
            .map(|_| shares.enter("alice").unwrap())
            .collect();
        let (last, full) = sessions.split_last().unwrap();
        let _flows: Vec<_> = full
            .iter()
            .flat_map(|session| (0..SESSION_FLOWS).map(|_| session.flow().unwrap()))
            .collect();

        assert!(last.flow().unwrap_err().contains("sessions of this user"));
        assert!(shares.enter("bob").unwrap().flow().is_ok());
    }

    #[test]
    fn a_user_connects_so_many_sessions_and_no_more() {
        let shares = Shares::default();
        let mut sessions: Vec<_> = (0..USER_SESSIONS)
            .map(|_| shares.enter("robot").unwrap())
            .collect();

        assert!(shares.enter("robot").unwrap_err().contains("256 sessions"));
        assert!(shares.enter("alice").is_ok());
        sessions.pop();
        assert!(shares.enter("robot").is_ok());
    }

    #[test]
    fn users_who_have_left_are_forgotten() {
        let shares = Shares::default();
        drop(shares.enter("alice").unwrap());

        let _bob = shares.enter("bob").unwrap();

        assert_eq!(shares.0.lock().unwrap().len(), 1);
    }
}

//! Quotas of one session, and of one user with all their sessions, so that none exhausts the
//! manager for the others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tp_process::sync::lock;

/// Flows of one session, and of one user. As many are theirs of those that come to them by intercepts:
/// who is busy with one kind has the other still.
const SESSION_FLOWS: usize = 4096;
const USER_FLOWS: usize = 16_384;
/// Connected sessions of one user: a service account may serve many pipelines.
const USER_SESSIONS: usize = 256;

/// The quotas of users, by name.
#[derive(Debug, Default)]
pub(crate) struct Quotas(Mutex<BTreeMap<String, Weak<UserQuota>>>);

#[derive(Debug)]
struct UserQuota {
    sessions: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    carried: Arc<Semaphore>,
}

/// The quota of one connected session; released when dropped.
#[derive(Debug)]
pub(crate) struct SessionQuota {
    user: Arc<UserQuota>,
    flows: Arc<Semaphore>,
    carried: Arc<Semaphore>,
    _session: OwnedSemaphorePermit,
}

/// The permit of one flow; released when dropped.
#[derive(Debug)]
pub(crate) struct FlowPermit {
    _session: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl Quotas {
    /// Admits another session of `user`; the error is a sentence for them.
    pub(crate) fn enter(&self, user: &str) -> Result<SessionQuota, String> {
        let quota = self.of(user);
        let session = Arc::clone(&quota.sessions)
            .try_acquire_owned()
            .map_err(|_| {
                format!(
                    "{user} has {USER_SESSIONS} sessions connected, as many as one user may: quit \
                     some of them"
                )
            })?;

        Ok(SessionQuota {
            user: quota,
            flows: Arc::new(Semaphore::new(SESSION_FLOWS)),
            carried: Arc::new(Semaphore::new(SESSION_FLOWS)),
            _session: session,
        })
    }

    fn of(&self, user: &str) -> Arc<UserQuota> {
        let mut quotas = lock(&self.0);
        if let Some(quota) = quotas.get(user).and_then(Weak::upgrade) {
            return quota;
        }
        quotas.retain(|_, quota| quota.strong_count() > 0);
        let quota = Arc::new(UserQuota {
            sessions: Arc::new(Semaphore::new(USER_SESSIONS)),
            flows: Arc::new(Semaphore::new(USER_FLOWS)),
            carried: Arc::new(Semaphore::new(USER_FLOWS)),
        });
        quotas.insert(user.to_owned(), Arc::downgrade(&quota));

        quota
    }
}

impl SessionQuota {
    /// Admits another flow; the error is a sentence for the user.
    pub(crate) fn flow(&self) -> Result<FlowPermit, String> {
        permit(&self.flows, &self.user.flows, "connections")
    }

    /// Admits another intercepted connection; the error is a sentence for the user.
    pub(crate) fn carried(&self) -> Result<FlowPermit, String> {
        let what = "intercepted connections";

        permit(&self.carried, &self.user.carried, what)
    }
}

fn permit(
    session: &Arc<Semaphore>,
    user: &Arc<Semaphore>,
    what: &str,
) -> Result<FlowPermit, String> {
    let of_session = Arc::clone(session).try_acquire_owned();
    let of_user = Arc::clone(user).try_acquire_owned();
    match (of_session, of_user) {
        (Ok(session), Ok(user)) => Ok(FlowPermit {
            _session: session,
            _user: user,
        }),
        (Err(_), _) => Err(format!(
            "this session has {SESSION_FLOWS} {what}, as many as it may"
        )),
        (_, Err(_)) => Err(format!(
            "the sessions of this user have {USER_FLOWS} {what}, as many as they may"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_refused_more_flows_than_its_share_and_others_are_not() {
        let quotas = Quotas::default();
        let (greedy, other) = (quotas.enter("alice").unwrap(), quotas.enter("bob").unwrap());
        let mut flows: Vec<_> = (0..SESSION_FLOWS).map(|_| greedy.flow().unwrap()).collect();

        let refused = greedy.flow().unwrap_err();

        assert_eq!(
            refused,
            "this session has 4096 connections, as many as it may"
        );
        assert!(other.flow().is_ok());
        let mut carried: Vec<_> = (0..SESSION_FLOWS).map(|_| greedy.carried()).collect();
        assert!(
            carried.iter().all(Result::is_ok),
            "they have places of their own"
        );
        let refused = greedy.carried().unwrap_err();
        assert!(
            refused.contains("4096 intercepted connections"),
            "{refused}"
        );
        carried.pop();
        assert!(greedy.carried().is_ok());
        flows.pop();
        assert!(greedy.flow().is_ok(), "a flow that ended gave its place");
    }

    #[test]
    fn many_sessions_give_a_user_no_more_flows() {
        let quotas = Quotas::default();
        let sessions: Vec<_> = (0..=USER_FLOWS / SESSION_FLOWS)
            .map(|_| quotas.enter("alice").unwrap())
            .collect();
        let (last, full) = sessions.split_last().unwrap();
        let _flows: Vec<_> = full
            .iter()
            .flat_map(|session| (0..SESSION_FLOWS).map(|_| session.flow().unwrap()))
            .collect();

        assert!(last.flow().unwrap_err().contains("sessions of this user"));
        assert!(quotas.enter("bob").unwrap().flow().is_ok());
    }

    #[test]
    fn a_user_connects_so_many_sessions_and_no_more() {
        let quotas = Quotas::default();
        let mut sessions: Vec<_> = (0..USER_SESSIONS)
            .map(|_| quotas.enter("robot").unwrap())
            .collect();

        assert!(quotas.enter("robot").unwrap_err().contains("256 sessions"));
        assert!(quotas.enter("alice").is_ok());
        sessions.pop();
        assert!(quotas.enter("robot").is_ok());
    }

    #[test]
    fn users_who_have_left_are_forgotten() {
        let quotas = Quotas::default();
        drop(quotas.enter("alice").unwrap());

        let _bob = quotas.enter("bob").unwrap();

        assert_eq!(quotas.0.lock().unwrap().len(), 1);
    }
}

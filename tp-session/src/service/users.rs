//! The users of a session, and the attempt or connection that serves them.
//!
//! A user is a connection to the session's socket that has asked to connect. The kernel closes it
//! when its program dies. The session ends with its last user, unless one connected to stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tp_proto::local::ConnectRequest;

use super::super::{
    connection::{self, Connection},
    progress::Stage,
};

/// Bounds the clean-up of an attempt that nobody wants any more, or of a lost connection.
const TAKE_DOWN_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct State {
    pub(super) phase: Phase,
    users: BTreeSet<u64>,
}

pub(super) enum Phase {
    Idle {
        since: Instant,
        /// The reason why the last connection ended; empty if there was none.
        reason: String,
    },
    Connecting(Box<Attempt>),
    Connected {
        connection: Arc<Connection>,
        /// The users that connected to stay until `tp quit`, even if they have gone.
        stays: BTreeSet<u64>,
        /// Cancelled when it is lost and has been taken down.
        down: CancellationToken,
    },
    /// The connection is lost, and being taken down.
    Lost {
        reason: String,
        down: CancellationToken,
    },
    Ending,
}

/// The attempt or connection that a request to connect finds.
pub(super) enum Existing {
    /// Nothing: the caller makes this attempt.
    Nothing(AttemptHandle),
    /// An attempt at the same connection, in which the caller now takes part.
    Same(watch::Receiver<Stage>),
    /// An attempt at another connection, to be waited for.
    Other(watch::Receiver<Stage>),
    Connection(Arc<Connection>),
    /// A connection that is lost, until it is down.
    Lost(CancellationToken),
    /// A session that is about to exit.
    End,
}

pub(super) struct Attempt {
    request: ConnectRequest,
    /// The users that take part, and whether for a command only.
    participants: BTreeMap<u64, bool>,
    handle: AttemptHandle,
}

/// Clones belong to the same attempt.
#[derive(Clone)]
pub(super) struct AttemptHandle {
    pub(super) stage: watch::Sender<Stage>,
    /// Cancelled when nobody wants it any more.
    pub(super) unwanted: CancellationToken,
    /// Cancelled when it is over and has left nothing behind.
    pub(super) over: CancellationToken,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: idle(String::new()),
            users: BTreeSet::new(),
        }
    }

    /// Adds a user; returns whether it is new.
    pub(super) fn enter(&mut self, user: u64) -> bool {
        self.users.insert(user)
    }

    pub(super) fn is_used(&self) -> bool {
        !self.users.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. })
    }

    pub(super) fn join(&mut self, user: u64, request: &ConnectRequest) -> Existing {
        // A user that has gone meanwhile would keep the session for ever.
        if !self.users.contains(&user) {
            return Existing::End;
        }
        match &mut self.phase {
            Phase::Idle { .. } => {
                let attempt = Box::new(Attempt::new(user, request));
                let handle = attempt.handle.clone();
                self.phase = Phase::Connecting(attempt);
                Existing::Nothing(handle)
            }
            Phase::Connecting(attempt) if attempt.is_for(request) => {
                attempt.participants.insert(user, request.for_command);
                Existing::Same(attempt.handle.stage.subscribe())
            }
            Phase::Connecting(attempt) => Existing::Other(attempt.handle.stage.subscribe()),
            Phase::Connected {
                connection, down, ..
            } if connection.is_lost() => Existing::Lost(down.clone()),
            Phase::Connected { connection, .. } => Existing::Connection(Arc::clone(connection)),
            Phase::Lost { down, .. } => Existing::Lost(down.clone()),
            Phase::Ending => Existing::End,
        }
    }

    /// Removes `user`; returns what is left to take down if that was the last one. A user that
    /// `withdraws` also no longer stays.
    pub(super) fn leave(&mut self, user: u64, withdraws: bool) -> Option<Phase> {
        self.users.remove(&user);
        let stays = match &mut self.phase {
            Phase::Connecting(attempt) => {
                attempt.participants.remove(&user);
                if attempt.participants.is_empty() {
                    attempt.handle.unwanted.cancel();
                }
                false
            }
            Phase::Connected { stays, .. } => {
                if withdraws {
                    stays.remove(&user);
                }
                !stays.is_empty()
            }
            Phase::Idle { .. } | Phase::Lost { .. } | Phase::Ending => false,
        };

        (self.users.is_empty() && !stays).then(|| self.end())
    }

    /// Ends the session; returns what is left to take down.
    pub(super) fn end(&mut self) -> Phase {
        mem::replace(&mut self.phase, Phase::Ending)
    }

    /// Takes over the connection of an attempt; `None` if it is no longer wanted.
    pub(super) fn succeed(&mut self, connection: &Arc<Connection>) -> Option<()> {
        let Phase::Connecting(attempt) = &self.phase else {
            return None;
        };
        if attempt.handle.unwanted.is_cancelled() {
            return None;
        }
        let participants = attempt.participants.iter();
        let stays = participants
            .filter(|(_, for_command)| !**for_command)
            .map(|(user, _)| *user)
            .collect();
        self.phase = Phase::Connected {
            connection: Arc::clone(connection),
            stays,
            down: CancellationToken::new(),
        };

        Some(())
    }

    /// Notes that an attempt has ended without a connection.
    pub(super) fn fail(&mut self) {
        if matches!(self.phase, Phase::Connecting(_)) {
            self.phase = idle(String::new());
        }
    }

    /// Returns whether `wanted` is still the connection. It stays if the request is not for a command.
    pub(super) fn keep(
        &mut self,
        user: u64,
        wanted: &Arc<Connection>,
        request: &ConnectRequest,
    ) -> bool {
        match &mut self.phase {
            Phase::Connected {
                connection, stays, ..
            } if Arc::ptr_eq(connection, wanted) && !connection.is_lost() => {
                if !request.for_command {
                    stays.insert(user);
                }
                true
            }
            _ => false,
        }
    }

    /// Gives out the connection `lost` no longer; `None` if it is not the current one.
    pub(super) fn lose(
        &mut self,
        lost: &Arc<Connection>,
        reason: String,
    ) -> Option<CancellationToken> {
        let Phase::Connected {
            connection, down, ..
        } = &self.phase
        else {
            return None;
        };
        let down = Arc::ptr_eq(connection, lost).then(|| down.clone())?;
        self.phase = Phase::Lost {
            reason,
            down: down.clone(),
        };

        Some(down)
    }

    /// Notes that the lost connection is down.
    pub(super) fn set_idle(&mut self) {
        if let Phase::Lost { reason, .. } = &mut self.phase {
            self.phase = idle(mem::take(reason));
        }
    }
}

impl Attempt {
    fn new(user: u64, request: &ConnectRequest) -> Self {
        Self {
            request: request.clone(),
            participants: BTreeMap::from([(user, request.for_command)]),
            handle: AttemptHandle {
                stage: watch::Sender::new(Stage::Begun),
                unwanted: CancellationToken::new(),
                over: CancellationToken::new(),
            },
        }
    }

    fn is_for(&self, request: &ConnectRequest) -> bool {
        let wanted = ConnectRequest {
            for_command: self.request.for_command,
            // Participants with the same names log in once.
            shell: self.request.shell.clone(),
            ..request.clone()
        };

        wanted == self.request && !self.handle.unwanted.is_cancelled()
    }
}

impl Phase {
    /// Leaves nothing behind, and tells the participants of an attempt.
    pub(super) async fn take_down(self) {
        match self {
            Self::Connected { connection, .. } => connection.close().await,
            Self::Connecting(attempt) => {
                attempt.handle.unwanted.cancel();
                attempt
                    .handle
                    .stage
                    .send_replace(Stage::Over(Err(connection::attempt_ended())));
                if timeout(TAKE_DOWN_TIMEOUT, attempt.handle.over.cancelled())
                    .await
                    .is_err()
                {
                    tracing::info!("Attempt to connect did not end in time");
                }
            }
            Self::Lost { down, .. } => {
                if timeout(TAKE_DOWN_TIMEOUT, down.cancelled()).await.is_err() {
                    tracing::info!("Lost connection not taken down in time");
                }
            }
            Self::Idle { .. } | Self::Ending => {}
        }
    }
}

pub(super) fn idle(reason: String) -> Phase {
    Phase::Idle {
        since: Instant::now(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(namespace: &str, for_command: bool) -> ConnectRequest {
        ConnectRequest {
            namespace: namespace.to_owned(),
            for_command,
            ..ConnectRequest::default()
        }
    }

    fn enter(state: &mut State, user: u64, request: &ConnectRequest) -> Existing {
        state.enter(user);
        state.join(user, request)
    }

    fn begin(state: &mut State, user: u64, request: &ConnectRequest) -> AttemptHandle {
        match enter(state, user, request) {
            Existing::Nothing(handle) => handle,
            _ => panic!("there is something already"),
        }
    }

    #[test]
    fn who_asks_for_the_same_takes_part_in_the_attempt() {
        let mut state = State::new();
        begin(&mut state, 1, &request("shop", false));

        assert!(matches!(
            enter(&mut state, 2, &request("shop", true)),
            Existing::Same(_)
        ));
        assert!(matches!(
            enter(&mut state, 3, &request("team-b", false)),
            Existing::Other(_)
        ));
    }

    #[test]
    fn an_attempt_ends_with_the_last_who_takes_part() {
        let mut state = State::new();
        let attempt = begin(&mut state, 1, &request("shop", false));
        enter(&mut state, 2, &request("shop", false));

        assert!(state.leave(1, false).is_none());
        assert!(!attempt.unwanted.is_cancelled());
        assert!(matches!(state.leave(2, false), Some(Phase::Connecting(_))));
        assert!(attempt.unwanted.is_cancelled());
        assert!(matches!(
            enter(&mut state, 3, &request("shop", false)),
            Existing::End
        ));
    }

    #[test]
    fn who_waits_for_another_attempt_keeps_the_session_but_not_the_attempt() {
        let mut state = State::new();
        let attempt = begin(&mut state, 1, &request("shop", false));
        enter(&mut state, 2, &request("team-b", false));

        assert!(state.leave(1, false).is_none());
        assert!(attempt.unwanted.is_cancelled());
        // An attempt that is being undone cannot be joined.
        assert!(matches!(
            enter(&mut state, 3, &request("shop", false)),
            Existing::Other(_)
        ));
        state.fail();
        begin(&mut state, 2, &request("team-b", false));
    }

    #[test]
    fn the_session_ends_when_a_failed_attempt_has_no_user_left() {
        let mut state = State::new();
        begin(&mut state, 1, &request("shop", false));
        enter(&mut state, 2, &request("shop", false));
        state.fail();

        assert!(state.leave(2, false).is_none());
        assert!(matches!(state.leave(1, false), Some(Phase::Idle { .. })));
        assert!(
            state
                .leave(1, false)
                .is_some_and(|phase| matches!(phase, Phase::Ending))
        );
    }

    #[test]
    fn a_user_who_has_gone_begins_nothing() {
        let mut state = State::new();
        state.enter(1);
        state.leave(1, false);

        assert!(matches!(
            state.join(1, &request("shop", false)),
            Existing::End
        ));
    }
}

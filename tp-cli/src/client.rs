//! Connections to this user's session.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    time::Timespec,
};
use tonic::transport::Channel;
use tp_ipc::IpcError;
use tp_proto::{
    fault::{Fault, FaultKind, chain},
    local::{QuitRequest, QuitResponse, StatusRequest, session_client::SessionClient},
};

use crate::state::ConnectionState;

/// Until the session answers a request about itself.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until a session has ended: it flushes, then undoes its changes.
const QUIT_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A connection to the session. The session may end a request when this closes.
#[derive(Debug)]
pub(crate) struct Session {
    client: SessionClient<Channel>,
    process: Option<OwnedFd>,
}

impl Deref for Session {
    type Target = SessionClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

#[cfg(test)]
impl Session {
    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            client: SessionClient::new(channel),
            process: None,
        }
    }
}

/// The session of this user in this network namespace, if one listens.
pub(crate) async fn find() -> Result<Option<Session>, Fault> {
    match tp_ipc::connect(&tp_ipc::socket_path()).await {
        Ok(connected) => Ok(Some(Session {
            client: SessionClient::new(connected.channel),
            process: connected.process,
        })),
        Err(IpcError::NoSession { .. }) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// The session of this user; its absence is an error.
pub(crate) async fn require() -> Result<Session, Fault> {
    find().await?.ok_or_else(not_connected)
}

pub(crate) fn not_connected() -> Fault {
    let message = format!("not connected{}: run `tp connect` first", elsewhere());

    Fault::new(FaultKind::NotConnected, message)
}

/// Returns whether the session is connected: it only compares further requests with the connection.
pub(crate) async fn is_connected() -> bool {
    let Ok(Some(mut session)) = find().await else {
        return false;
    };
    let status = ask(session.status(StatusRequest {})).await;

    status.is_ok_and(|status| ConnectionState::of(&status) == ConnectionState::Connected)
}

/// Hint for a user who is not connected here but may be elsewhere.
pub(crate) fn elsewhere() -> &'static str {
    if tp_ipc::runs_elsewhere() {
        " in this network namespace (a session runs in another one)"
    } else {
        ""
    }
}

/// Awaits an answer of the session, with a timeout.
pub(crate) async fn ask<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Fault> {
    ask_within(ANSWER_TIMEOUT, answer).await
}

/// [`ask`], where others are asked as well.
pub(crate) async fn ask_within<T>(
    bound: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(bound, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(no_answer(bound)),
    }
}

/// Ends the session for all its users and waits until it has ended, so that a connect may follow at
/// once.
pub(crate) async fn quit(session: Session) -> Result<QuitResponse, Fault> {
    end(session, QuitRequest { unless_used: false }).await
}

/// Closes this connection; the session ends if nobody else uses it.
pub(crate) async fn leave(session: Session) -> Result<QuitResponse, Fault> {
    end(session, QuitRequest { unless_used: true }).await
}

async fn end(session: Session, request: QuitRequest) -> Result<QuitResponse, Fault> {
    let Session {
        mut client,
        process,
    } = session;
    let ended = async {
        let response = client.quit(request).await?.into_inner();
        drop(client);
        if !response.goes_on {
            while !has_ended(process.as_ref()).await {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(response)
    };

    tokio::time::timeout(QUIT_TIMEOUT, ended)
        .await
        .unwrap_or_else(|_| Err(no_answer(QUIT_TIMEOUT)))
}

/// Without a pidfd only the absence of the socket counts: a socket that is being closed may reset
/// connections.
async fn has_ended(process: Option<&OwnedFd>) -> bool {
    let Some(process) = process else {
        return matches!(find().await, Ok(None));
    };
    let at_once = Timespec::default();

    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once)).is_ok_and(|ended| ended > 0)
}

pub(crate) fn no_answer(after: Duration) -> Fault {
    let message = format!(
        "the session did not answer within {} s: see its log in {}; `pkill -f \
         tp-session` ends it and leaves the network as it was before connecting",
        after.as_secs(),
        tp_ipc::state_dir().display()
    );

    Fault::new(FaultKind::Unavailable, message)
}

pub(crate) fn fault(error: &IpcError) -> Fault {
    let kind = match error {
        IpcError::Directory { .. } | IpcError::ForeignPeer { .. } => FaultKind::NoPermission,
        IpcError::NoSession { .. } => FaultKind::NotConnected,
        IpcError::InUse { .. } => FaultKind::TemporaryFailure,
        IpcError::Socket { .. } | IpcError::Channel(_) => FaultKind::Unavailable,
    };

    Fault::new(kind, chain(error))
}

//! The way to the session of this user.

use std::time::Duration;

use tonic::transport::Channel;
use tp_proto::{
    fault::{Fault, FaultKind, chain},
    local::{QuitRequest, session_client},
};
use tp_transport::ipc::{self, IpcError};

pub(crate) type SessionClient = session_client::SessionClient<Channel>;

/// Longest wait for an answer of the session to a question about itself.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for the end of a session: it flushes, then undoes.
const QUIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// The session of this user, if one listens.
pub(crate) async fn find() -> Result<Option<SessionClient>, Fault> {
    match ipc::connect(&ipc::socket_path()).await {
        Ok(channel) => Ok(Some(SessionClient::new(channel))),
        Err(IpcError::NoSession { .. }) => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

/// The session of this user; its absence is an error.
pub(crate) async fn require() -> Result<SessionClient, Fault> {
    find().await?.ok_or_else(not_connected)
}

pub(crate) fn not_connected() -> Fault {
    Fault::new(
        FaultKind::NotConnected,
        "not connected: run `tp connect` first",
    )
}

/// One question to the session, with a bound.
pub(crate) async fn ask<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(no_answer(ANSWER)),
    }
}

/// Ends the session and waits until its socket is gone, so that a connect may follow at once.
pub(crate) async fn quit(mut client: SessionClient) -> Result<(), Fault> {
    let ended = async {
        client.quit(QuitRequest {}).await?;
        drop(client);
        // A socket that is being closed may hang up on who asks: only its absence is the end.
        while !matches!(find().await, Ok(None)) {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };

    tokio::time::timeout(QUIT, ended)
        .await
        .unwrap_or_else(|_| Err(no_answer(QUIT)))
}

fn no_answer(after: Duration) -> Fault {
    let message = format!(
        "the session did not answer within {} s: see its log in {}; ending the process \
         `tp-daemon session` leaves the network as it was before connecting",
        after.as_secs(),
        ipc::state_dir().display()
    );

    Fault::new(FaultKind::Unavailable, message)
}

fn fault(error: &IpcError) -> Fault {
    let kind = match error {
        IpcError::Directory { .. } | IpcError::ForeignPeer { .. } => FaultKind::NoPermission,
        IpcError::NoSession { .. } => FaultKind::NotConnected,
        IpcError::InUse { .. } => FaultKind::TemporaryFailure,
        IpcError::Socket { .. } | IpcError::Channel(_) => FaultKind::Unavailable,
    };

    Fault::new(kind, chain(error))
}

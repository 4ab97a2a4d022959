//! An intercept that this command has made, and ends where it fails after that.

use tonic::transport::Channel;
use tp_proto::{
    fault::FaultKind,
    local::{Intercept, LeaveRequest, session_client::SessionClient},
};

use super::super::connect::{self, Attempt};
use crate::{
    client::{self, Session},
    exit::Interrupted,
    progress::{Progress, note},
};

pub(super) struct Standing {
    session: SessionClient<Channel>,
    name: String,
}

impl Standing {
    pub(super) fn of(session: &Session, intercept: &Intercept) -> Self {
        Self {
            session: SessionClient::clone(session),
            name: intercept.name.clone(),
        }
    }

    /// Returns whether it has ended.
    async fn leave(mut self) -> bool {
        let name = self.name.clone();
        let Err(fault) = client::ask(self.session.leave(LeaveRequest { name })).await else {
            return true;
        };
        // It is unknown, or has ended with its session.
        if fault.kind == FaultKind::Usage || !tp_ipc::socket_path().exists() {
            return true;
        }
        let name = &self.name;
        note(&format!(
            "note: the intercept {name} may go on: `tp leave {name}` ends it ({fault})"
        ));

        false
    }
}

/// [`connect::undo`], where there may be an intercept.
pub(super) async fn undo(
    standing: Option<Standing>,
    attempt: Attempt,
    error: anyhow::Error,
    progress: &mut Progress,
) -> anyhow::Error {
    let mut is_left = true;
    if let Some(standing) = standing {
        progress.step("ending the intercept");
        is_left = standing.leave().await;
    }
    let mut error = connect::undo(attempt, error, progress).await;
    if let Some(interrupted) = error.downcast_mut::<Interrupted>() {
        interrupted.is_undone &= is_left;
    }

    error
}

#[cfg(test)]
mod tests;

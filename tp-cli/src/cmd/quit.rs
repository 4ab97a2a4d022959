//! `tp quit`.

use std::time::Duration;

use serde::Serialize;
use tp_proto::fault::{Fault, FaultKind};
use tp_transport::ipc;

use crate::{
    cli::QuitArgs,
    client::{self, SessionClient},
    output::Output,
    root_daemon::{self, Answer},
};

/// A root daemon that `tp connect` started ends with its last session.
const ROOT_ENDS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Serialize)]
struct Quit {
    state: &'static str,
}

pub(crate) async fn run(args: &QuitArgs, output: Output) -> anyhow::Result<()> {
    let Some(session) = client::find().await? else {
        let message = "not connected: there is nothing to quit";
        return Err(Fault::new(FaultKind::NotConnected, message).into());
    };
    end(session, args.stop_daemons).await?;

    output.print(
        &Quit {
            state: "disconnected",
        },
        "Disconnected\n",
    )
}

/// Ends the session, and with it a root daemon that `tp connect` started.
pub(crate) async fn end(session: SessionClient, stop_daemons: bool) -> Result<(), Fault> {
    let root_daemon_ends = match root_daemon::hello() {
        Answer::Running(running) => running.ends_with_last_session,
        Answer::Absent | Answer::Ending | Answer::Denied(_) | Answer::Broken(_) => false,
    };
    client::quit(session).await?;
    if root_daemon_ends {
        root_daemon_ended(stop_daemons).await?;
    }

    Ok(())
}

/// Waits for the end of a root daemon that `tp connect` started, so that a connect may follow.
async fn root_daemon_ended(required: bool) -> Result<(), Fault> {
    let socket = root_daemon::socket_path();
    let ended = async {
        while socket.exists() && !matches!(root_daemon::hello(), Answer::Absent) {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(ROOT_ENDS, ended).await.is_err() && required {
        let message = format!(
            "disconnected, but the root daemon at {} has not ended: see its log in {}",
            socket.display(),
            ipc::state_dir().display()
        );
        return Err(Fault::new(FaultKind::Failed, message));
    }

    Ok(())
}

//! `tp quit`.

use std::time::Duration;

use serde::Serialize;
use tp_proto::fault::{Fault, FaultKind};

use crate::{
    cli::QuitArgs,
    client::{self, Session},
    output::Output,
    root_daemon,
    state::ConnectionState,
};

/// For the end of a root daemon that `tp connect` started, after its last session.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Serialize)]
struct Quit {
    state: &'static str,
}

pub(crate) async fn run(args: &QuitArgs, output: Output) -> anyhow::Result<()> {
    let disconnected = Quit {
        state: ConnectionState::DISCONNECTED,
    };
    // No error: scripts call `tp quit` in any state.
    let Some(session) = client::find().await? else {
        // The root daemon of a killed session may still be ending.
        if args.stop_daemons && root_daemon::is_ending() {
            root_daemon_ended(true).await?;
        }
        let text = format!("Not connected{}\n", client::elsewhere());
        return output.print(&disconnected, &text);
    };
    end(session, args.stop_daemons).await?;

    output.print(&disconnected, "Disconnected\n")
}

/// Ends the session, and with it a root daemon that `tp connect` started.
pub(crate) async fn end(session: Session, stop_daemons: bool) -> Result<(), Fault> {
    if client::quit(session).await?.root_daemon_ends {
        root_daemon_ended(stop_daemons).await?;
    }

    Ok(())
}

/// Waits for the end of a root daemon that `tp connect` started, so that a connect may follow.
pub(super) async fn root_daemon_ended(required: bool) -> Result<(), Fault> {
    let ended = async {
        while !root_daemon::is_gone() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() && required {
        let message = format!(
            "disconnected, but the root daemon at {} has not ended: see its log in {}",
            tp_root_api::socket_path().display(),
            tp_ipc::state_dir().display()
        );
        return Err(Fault::new(FaultKind::Failed, message));
    }

    Ok(())
}

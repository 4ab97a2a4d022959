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
    /// The names of those that were ended.
    intercepts: Vec<String>,
}

pub(crate) async fn run(args: &QuitArgs, output: Output) -> anyhow::Result<()> {
    let disconnected = |intercepts| Quit {
        state: ConnectionState::DISCONNECTED,
        intercepts,
    };
    // No error: scripts call `tp quit` in any state.
    let Some(session) = client::find().await? else {
        // The root daemon of a killed session may still be ending.
        if args.stop_daemons && root_daemon::is_ending() {
            root_daemon_ended(true).await?;
        }
        let text = format!("Not connected{}\n", client::elsewhere());
        return output.print(&disconnected(Vec::new()), &text);
    };
    let intercepts = end(session, args.stop_daemons).await?;
    let text = text(&intercepts);

    output.print(&disconnected(intercepts), &text)
}

fn text(intercepts: &[String]) -> String {
    match intercepts {
        [] => "Disconnected\n".to_owned(),
        [one] => format!("Disconnected; ended the intercept {one}\n"),
        several => format!(
            "Disconnected; ended the intercepts {}\n",
            several.join(", ")
        ),
    }
}

/// Ends the session, and with it a root daemon that `tp connect` started; returns the names of the
/// intercepts that ended.
pub(crate) async fn end(session: Session, stop_daemons: bool) -> Result<Vec<String>, Fault> {
    let ended = client::quit(session).await?;
    if ended.root_daemon_ends {
        root_daemon_ended(stop_daemons).await?;
    }

    Ok(ended.intercepts)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intercepts_that_ended_are_named() {
        let names = ["db", "web"].map(str::to_owned);

        assert_eq!(text(&[]), "Disconnected\n");
        assert_eq!(text(&names[..1]), "Disconnected; ended the intercept db\n");
        assert_eq!(text(&names), "Disconnected; ended the intercepts db, web\n");
    }
}

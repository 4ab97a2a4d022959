//! `tp quit`.

use std::time::Duration;

use serde::Serialize;
use tp_proto::fault::{Fault, FaultKind};

use crate::{
    cli::QuitArgs,
    client,
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
    client::quit(session).await?;
    if args.stop_daemons {
        root_daemon_ended().await;
    }

    output.print(
        &Quit {
            state: "disconnected",
        },
        "Disconnected\n",
    )
}

/// Waits for the end of a root daemon that `tp connect` started; one that is a service stays.
async fn root_daemon_ended() {
    let ended = async {
        while root_daemon::hello() != Answer::Absent {
            tokio::time::sleep(POLL).await;
        }
    };
    if !root_daemon::is_service() {
        // It is asked to end by the end of its session; that it takes longer is no failure.
        let _ = tokio::time::timeout(ROOT_ENDS, ended).await;
    }
}

//! `tp uninstall`: removes tp from the cluster and from this machine.

use super::quit;
use crate::{
    client,
    install::{self, Remaining, UninstallArgs},
    output::Output,
    root_daemon::{self, Answer},
};

pub(crate) async fn run(args: UninstallArgs, output: Output) -> anyhow::Result<()> {
    let end_here = async {
        if let Some(session) = client::find().await? {
            quit::end(session, true).await?;
        }
        // A root daemon that `tp connect` started has ended by now.
        let remaining = match root_daemon::hello() {
            Answer::Absent | Answer::Ending => Remaining::Nothing,
            Answer::Running(_) | Answer::Denied(_) | Answer::Broken(_) => Remaining::RootDaemon,
        };

        Ok(remaining)
    };

    install::uninstall(args, output, end_here).await
}

//! `tp uninstall`: what is in the cluster, and what runs here.

use super::quit;
use crate::{
    client,
    install::{self, Left, UninstallArgs},
    output::Output,
    root_daemon::{self, Answer},
};

pub(crate) async fn run(args: UninstallArgs, output: Output) -> anyhow::Result<()> {
    let end_here = async {
        if let Some(session) = client::find().await? {
            quit::end(session, true).await?;
        }
        // One that `tp connect` started has ended by now.
        let left = match root_daemon::hello() {
            Answer::Absent | Answer::Ending => Left::Nothing,
            Answer::Running(_) | Answer::Denied(_) | Answer::Broken(_) => Left::RootDaemon,
        };

        Ok(left)
    };

    install::uninstall(args, output, end_here).await
}

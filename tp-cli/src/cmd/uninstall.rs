//! `tp uninstall`: what is in the cluster, and what runs here.

use super::quit;
use crate::{
    client,
    install::{self, UninstallArgs},
    output::Output,
};

pub(crate) async fn run(args: UninstallArgs, output: Output) -> anyhow::Result<()> {
    let end_here = async {
        match client::find().await? {
            Some(session) => quit::end(session, true).await,
            None => Ok(()),
        }
    };

    install::uninstall(args, output, end_here).await
}

//! `tp uninstall`: what runs here, then what is in the cluster.

use crate::{
    client,
    install::{self, UninstallArgs},
    output::Output,
};

pub(crate) async fn run(args: UninstallArgs, output: Output) -> anyhow::Result<()> {
    if args.everything
        && !args.dry_run
        && let Some(session) = client::find().await?
    {
        client::quit(session).await?;
    }

    install::uninstall(args, output).await
}

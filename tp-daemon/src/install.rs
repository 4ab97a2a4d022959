//! Installation from a release.

#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {}

#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {}

pub(crate) fn run(_args: InstallArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

pub(crate) fn run_uninstall(_args: UninstallArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

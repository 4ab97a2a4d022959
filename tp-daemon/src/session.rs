//! Role `session`.

#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {}

pub(crate) fn run(_args: SessionArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

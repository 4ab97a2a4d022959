//! Role `root`.

#[derive(Debug, clap::Args)]
pub(crate) struct RootArgs {}

pub(crate) fn run(_args: RootArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

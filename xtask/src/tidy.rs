//! Rules of this workspace that no other tool checks.

use anyhow::Result;

#[expect(clippy::unnecessary_wraps, reason = "the rules come with the code they check")]
pub(crate) fn run() -> Result<()> {
    Ok(())
}

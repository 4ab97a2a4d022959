//! `tp leave`.

use tp_proto::local::LeaveRequest;

use crate::{cli::LeaveArgs, client, output::Output};

pub(crate) async fn run(args: LeaveArgs, output: Output) -> anyhow::Result<()> {
    let mut session = client::require().await?;
    let request = LeaveRequest { name: args.name };
    let left = client::ask(session.leave(request)).await?;
    let intercept = left.intercept.unwrap_or_default();
    let text = format!(
        "Left {}: new connections to {} in namespace {} go to its pods\n",
        intercept.name,
        super::intercept::workload(&intercept),
        intercept.namespace
    );

    output.print(&intercept, &text)
}

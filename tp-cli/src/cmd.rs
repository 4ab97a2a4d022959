//! One file per command. Each reads its arguments, asks, and prints through `Output`.

use std::process::ExitCode;

use crate::{
    cli::Command,
    exit,
    output::{Output, print_all},
};

mod check;
mod complete;
mod completions;
mod connect;
mod env;
mod environment;
mod gather_logs;
mod intercept;
mod leave;
mod list;
mod quit;
mod status;
mod uninstall;
mod version;

pub(crate) async fn run(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Connect(args) => return connect::run(*args, output).await,
        Command::Check(args) => return check::run(*args, output).await,
        Command::Intercept(args) => return intercept::run(*args, output).await,
        Command::Status(_) => return status::run(output).await,
        Command::Quit(args) => quit::run(&args, output).await?,
        Command::Leave(args) => leave::run(args, output).await?,
        Command::Env(args) => env::run(args, output).await?,
        Command::List(args) => list::run(args, output).await?,
        Command::Version(_) => version::run(output).await?,
        Command::GatherLogs(args) => gather_logs::run(args, output).await?,
        Command::Install(args) => crate::install::install(*args, None, output).await?,
        Command::Grant(args) => crate::install::grant(*args, output).await?,
        Command::Uninstall(args) => uninstall::run(*args, output).await?,
        Command::Complete(args) => complete::run(&args).await,
        Command::ExitCodes(_) => print_all(&format!("{}\n", exit::CODES))?,
        Command::Completions(args) => completions::run(&args, output)?,
    }

    Ok(ExitCode::SUCCESS)
}

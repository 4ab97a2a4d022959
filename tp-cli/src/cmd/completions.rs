//! `tp completions`.

use clap::CommandFactory;
use serde::Serialize;

use crate::{
    cli::{Cli, CompletionsArgs},
    output::Output,
};

#[derive(Debug, Serialize)]
struct Completions {
    shell: String,
    script: String,
}

pub(crate) fn run(args: &CompletionsArgs, output: Output) -> anyhow::Result<()> {
    let completions = Completions {
        shell: args.shell.to_string(),
        script: script(args.shell),
    };

    output.print(&completions, &completions.script)
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tp", &mut script);

    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn each_script_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}");
            }
        }
    }
}

//! `tp completions`.

use clap::CommandFactory;

use crate::{
    cli::{Cli, CompletionsArgs},
    output,
};

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    output::print_all(&script(args.shell))
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

//! `tp completions`.
//!
//! The scripts are clap's, for commands and flags, with an addition that asks `tp __complete` for
//! the names of contexts, namespaces, workloads and intercepts.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use crate::{
    cli::{Cli, CompletionsArgs},
    output::Output,
};

#[cfg(test)]
mod tests;

/// Flags whose values are names, by their long form.
const CONTEXTS: [&str; 1] = ["context"];
const NAMESPACES: [&str; 2] = ["namespace", "manager-namespace"];
/// Separated by commas.
const NAMESPACE_LISTS: [&str; 1] = ["mapped-namespaces"];

/// Bash splits a word at `:`, `=` and `@`, which names contain, and replaces only the part after
/// the last split, its `$2`.
const BASH: &str = r#"
_tp_names() {
    local line=${COMP_LINE:0:COMP_POINT} word before flag list= prefix name
    local -a words
    word=${line##*[[:space:]]}
    before=${line%"$word"}
    prefix=${word%"$2"}
    if [[ $before == *[[:space:]]--[[:space:]]* ]]; then
        _tp "$@"
        return
    fi
    if [[ $word == --*=* ]]; then
        flag=${word%%=*}
        prefix=${prefix#"$flag="}
        word=${word#*=}
    else
        read -r -a words <<< "$before"
        flag=${words[-1]}
    fi
    case $flag in
        --context)
            set -- "$1" contexts
            ;;
        -n | --namespace | --manager-namespace)
            set -- "$1" namespaces
            ;;
        --mapped-namespaces)
            set -- "$1" namespaces
            list=${word%"${word##*,}"}
            ;;
        intercept | env | leave)
            if [[ $word == -* ]]; then
                _tp "$@"
                return
            fi
            if [[ $flag == leave ]]; then
                set -- "$1" intercepts
            else
                set -- "$1" workloads
            fi
            ;;
        *)
            _tp "$@"
            return
            ;;
    esac
    COMPREPLY=()
    while IFS= read -r name; do
        if [[ $list$name == "$word"* ]]; then
            name=$list$name
            COMPREPLY+=("${name#"$prefix"}")
        fi
    done < <("$1" __complete "$2" 2> /dev/null)
}
"#;

const ZSH: &str = r#"
_tp_contexts() {
    local -a names
    names=(${(f)"$(_call_program contexts tp __complete contexts 2> /dev/null)"})
    compadd "$@" -a names
}

_tp_namespaces() {
    local -a names
    names=(${(f)"$(_call_program namespaces tp __complete namespaces 2> /dev/null)"})
    compadd "$@" -a names
}

_tp_workloads() {
    local -a names
    names=(${(f)"$(_call_program workloads tp __complete workloads 2> /dev/null)"})
    compadd "$@" -a names
}

_tp_intercepts() {
    local -a names
    names=(${(f)"$(_call_program intercepts tp __complete intercepts 2> /dev/null)"})
    compadd "$@" -a names
}
"#;

/// Arguments whose values are names, by the command, with how clap's script for zsh begins them.
const ARGUMENTS: [(&str, &str, &str); 3] = [
    ("intercept", "workloads", "'::workload -- "),
    ("env", "workloads", "':workload -- "),
    ("leave", "intercepts", "':name -- The name of the intercept"),
];

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

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "tp", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();

    match shell {
        Shell::Bash => {
            let named = script.replace("complete -F _tp ", "complete -F _tp_names ");
            format!("{}{named}", BASH.trim_start())
        }
        Shell::Zsh => zsh(&script),
        Shell::Fish => format!("{script}{}", fish(&visible())),
        _ => script,
    }
}

/// Without hidden commands, which clap's scripts would offer.
fn visible() -> Command {
    let tp = Cli::command();
    let commands = tp.get_subcommands().filter(|it| !it.is_hide_set());

    Command::new("tp")
        .version(tp_core::VERSION)
        .args(tp.get_arguments())
        .subcommands(commands)
}

/// Other values complete to files.
fn zsh(script: &str) -> String {
    let named: Vec<String> = script
        .lines()
        .map(|line| {
            let of = |flags: &[&str]| {
                flags
                    .iter()
                    .any(|flag| line.contains(&format!("--{flag}=")))
            };
            let is_short = line.contains("'-n+[");
            let argument = ARGUMENTS
                .iter()
                .find(|(_, _, begin)| line.starts_with(begin));
            if let Some((_, names, _)) = argument {
                return line.replace(":_default'", &format!(":_tp_{names}'"));
            }
            let action = if of(&CONTEXTS) {
                "_tp_contexts"
            } else if of(&NAMESPACE_LISTS) {
                "_sequence _tp_namespaces"
            } else if of(&NAMESPACES) || is_short {
                "_tp_namespaces"
            } else {
                return line.to_owned();
            };
            line.replace(":_default'", &format!(":{action}'"))
        })
        .collect();

    // The first line is for zsh's own search for completions.
    let mut lines = named.into_iter();
    let first = lines.next().unwrap_or_default();
    let rest: Vec<String> = lines.collect();
    format!("{first}\n{ZSH}\n{}\n", rest.join("\n"))
}

/// Completions of values, for flags that fish already knows.
fn fish(tp: &Command) -> String {
    let mut text = String::new();
    for (command, names, _) in ARGUMENTS {
        text.push_str(&format!(
            "complete -c tp -n \"__fish_seen_subcommand_from {command}\" -a '(tp __complete {names} 2> \
             /dev/null)'\n"
        ));
    }
    for command in tp.get_subcommands() {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else {
                continue;
            };
            let names = if CONTEXTS.contains(&long) {
                "(tp __complete contexts 2> /dev/null)"
            } else if NAMESPACES.contains(&long) {
                "(tp __complete namespaces 2> /dev/null)"
            } else if NAMESPACE_LISTS.contains(&long) {
                "(__fish_complete_list , \"tp __complete namespaces 2> /dev/null\")"
            } else {
                continue;
            };
            let short = arg
                .get_short()
                .map_or_else(String::new, |it| format!(" -s {it}"));
            text.push_str(&format!(
                "complete -c tp -n \"__fish_seen_subcommand_from {}\"{short} -l {long} -x -a '{names}'\n",
                command.get_name()
            ));
        }
    }

    text
}

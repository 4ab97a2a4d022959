use std::{os::unix::fs::PermissionsExt as _, process};

use super::*;

/// A `tp` that offers these names and records its arguments.
const PROGRAM: &str = "#!/bin/sh
echo \"$*\" >> \"$(dirname \"$0\")/calls\"
echo 'an error that nobody is to see' >&2
case \"$2\" in
contexts) printf '%s\\n' lab admin@lab admin@live arn:aws:eks:eu-west-1:1:cluster/live ;;
namespaces) printf '%s\\n' shop bank team-b ;;
workloads) printf '%s\\n' web db ;;
intercepts) printf '%s\\n' mine ;;
esac
";

/// The completions of bash at the end of this command line, each as it replaces the last word.
fn offered(line: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tp");
    std::fs::write(&program, PROGRAM).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = dir.path().join("script");
    std::fs::write(&file, script(Shell::Bash)).unwrap();
    // As readline calls the function: the words are split at COMP_WORDBREAKS.
    let driver = r#"
        . "$1"
        COMP_LINE=$2 COMP_POINT=${#2}
        eval "COMP_WORDS=($(printf '%s' "$2" | sed 's/\([@=:]\)/ \1 /g'))"
        [[ $2 == *[[:space:]@=:] ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p tp | sed 's/.*-F \([^ ]*\).*/\1/')
        "$function" tp "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = process::Command::new("bash")
        .args(["--norc", "-c", driver, "bash"])
        .arg(&file)
        .arg(line)
        .env("PATH", path)
        .output()
        .unwrap();
    let (stdout, stderr) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!(stderr, "", "{line}");

    String::from_utf8_lossy(stdout)
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_script_completes_every_command() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = script(shell);
        for command in visible().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}");
        }
    }
}

#[test]
fn bash_completes_contexts_though_it_cuts_words() {
    assert_eq!(offered("tp connect --context l"), ["lab"]);
    assert_eq!(offered("tp connect --context=l"), ["lab"]);
    assert_eq!(offered("tp connect --context admin@l"), ["lab", "live"]);
    assert_eq!(offered("tp connect --context=admin@li"), ["live"]);
    let arn = "aws:eks:eu-west-1:1:cluster/live";
    assert_eq!(offered("tp connect --context arn:"), [arn]);
    assert_eq!(
        offered("tp install --context=arn:aws:ek"),
        ["eks:eu-west-1:1:cluster/live"]
    );
    assert_eq!(offered("tp connect --context ").len(), 4);
}

#[test]
fn bash_completes_namespaces_also_in_lists() {
    let all = ["shop", "bank", "team-b"];
    for flag in [
        "-n ",
        "--namespace ",
        "--namespace=",
        "--manager-namespace ",
    ] {
        assert_eq!(offered(&format!("tp connect {flag}")), all, "{flag}");
    }
    assert_eq!(offered("tp list -n te"), ["team-b"]);
    assert_eq!(
        offered("tp connect --mapped-namespaces shop,b"),
        ["shop,bank"]
    );
    assert_eq!(offered("tp connect -n nothing"), [""; 0]);
}

#[test]
fn bash_completes_workloads_and_intercepts() {
    assert_eq!(offered("tp intercept "), ["web", "db"]);
    assert_eq!(offered("tp -o json intercept w"), ["web"]);
    assert_eq!(offered("tp env d"), ["db"]);
    assert_eq!(offered("tp leave "), ["mine"]);
    assert!(offered("tp intercept --rep").contains(&"--replica".to_owned()));
}

#[test]
fn bash_completes_flags_and_commands_as_before() {
    let commands = offered("tp ");
    for command in ["connect", "check", "grant"] {
        assert!(commands.iter().any(|it| it == command), "{commands:?}");
    }
    assert!(!commands.iter().any(|it| it.contains("__")), "{commands:?}");
    assert!(offered("tp connect --transp").contains(&"--transport".to_owned()));
    let transports = offered("tp connect --transport ");
    assert_eq!(transports, ["auto", "udp", "portforward"]);
    // The command after `--`.
    assert_eq!(offered("tp connect -- kubectl --context l"), [""; 0]);
}

#[test]
fn zsh_and_fish_ask_for_names_where_flags_take_them() {
    let zsh = script(Shell::Zsh);
    assert!(zsh.starts_with("#compdef tp\n"), "{zsh}");
    for (flag, action) in [
        ("--context=", ":_tp_contexts'"),
        ("--namespace=", ":_tp_namespaces'"),
        ("'-n+[", ":_tp_namespaces'"),
        ("--mapped-namespaces=", ":_sequence _tp_namespaces'"),
        ("'::workload -- ", ":_tp_workloads'"),
        ("':workload -- ", ":_tp_workloads'"),
        ("':name -- The name of the intercept", ":_tp_intercepts'"),
    ] {
        let mut lines = zsh.lines().filter(|line| line.contains(flag)).peekable();
        assert!(lines.peek().is_some(), "{flag}");
        for line in lines {
            assert!(line.contains(action), "{line}");
        }
    }
    let fish = script(Shell::Fish);
    for command in ["connect", "check", "install", "uninstall", "grant"] {
        let expected = format!(
            "complete -c tp -n \"__fish_seen_subcommand_from {command}\" -l context -x -a '(tp \
             __complete contexts"
        );
        assert!(fish.contains(&expected), "{command}");
    }
}

//! Output of the programs, to the letter: text, errors and exit codes.
//!
//! A change here is a change for users, and has a line in CHANGELOG.md. `TP_GOLDEN=write` rewrites
//! the files.

mod transcript;

use std::fs;

use tp_e2e::{cluster::testbed, user::Account, workstation::Workstation};

use transcript::Transcript;

/// Commands whose `--help` is recorded.
const COMMANDS: [&str; 12] = [
    "connect",
    "quit",
    "status",
    "check",
    "list",
    "version",
    "gather-logs",
    "install",
    "uninstall",
    "grant",
    "completions",
    "exit-codes",
];

fn person(name: &str) -> Workstation {
    let mut workstation = Workstation::new(Account::Member, name);
    workstation.may_warn();
    workstation
}

#[test]
fn the_help_is_this_text() {
    let workstation = Workstation::without_root_daemon(Account::Member, "dev");
    let mut transcript = Transcript::of(&workstation);

    transcript.tp(&["--help"]);
    transcript.tp(&["--version"]);
    transcript.tp(&["help", "exit-codes"]);
    for command in COMMANDS {
        transcript.tp(&[command, "-h"]);
        transcript.tp(&[command, "--help"]);
    }

    transcript.assert_is("help");
}

#[test]
fn wrong_words_are_answered_with_this_text() {
    let workstation = Workstation::without_root_daemon(Account::Member, "dev");
    let mut transcript = Transcript::of(&workstation);

    for words in [
        &["frobnicate"][..],
        &["frobnicate", "--output", "json"],
        &["frobnicate", "--output", "yaml"],
        &["helm", "install"],
        &["leave", "web"],
        &["ingest", "web"],
        &["loglevel", "debug"],
        &["connect", "--frobnicate"],
        &["connect", "--namespace", "Not_A_Name"],
        &["connect", "--also-proxy", "10.0.0.0/33"],
        &["connect", "--transport", "pigeon"],
        &["connect", "--install"],
        &["connect", "--as-group", "friends"],
        &["list", "--all-namespaces", "--namespace", "shop"],
        &["completions", "csh"],
        &["install"],
        &["grant"],
        &["grant", "alice", "--output", "json"],
    ] {
        transcript.tp(words);
    }

    transcript.assert_is("usage");
}

#[test]
fn without_a_connection_the_commands_say_this() {
    let workstation = person("dev");
    let mut transcript = Transcript::of(&workstation);

    for words in [
        &["status"][..],
        &["status", "--output", "json"],
        &["status", "--output", "yaml"],
        &["list"],
        &["list", "--output", "json"],
        &["quit"],
        &["quit", "--output", "json"],
        &["version"],
        &["version", "--output", "json"],
    ] {
        transcript.tp(words);
    }

    transcript.assert_is("disconnected");
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said_so() {
    let workstation = person("dev");
    let mut transcript = Transcript::of(&workstation);
    let home = workstation.home().to_owned();
    let path = |name: &str| home.join(name).display().to_string();
    let connect = |transcript: &mut Transcript<'_>, flags: &[&str]| {
        transcript.tp(&[&["connect"], flags].concat());
    };
    for (name, text) in [
        ("empty.yaml", ""),
        ("list.yaml", "- no\n- map\n"),
        ("open.yaml", "contexts: ["),
        ("nothing.yaml", "{}"),
        ("nowhere.yaml", "current-context: nowhere\n"),
    ] {
        fs::write(home.join(name), text).unwrap();
        connect(&mut transcript, &["--kubeconfig", &path(name)]);
    }

    connect(&mut transcript, &["--kubeconfig", &path("absent")]);
    connect(
        &mut transcript,
        &["--kubeconfig", &path("absent"), "-ojson"],
    );
    connect(&mut transcript, &["--kubeconfig", &path("")]);
    connect(&mut transcript, &["--context", "moon"]);
    connect(&mut transcript, &["--cluster", "mars"]);
    connect(&mut transcript, &["--user", "nobody-here"]);

    transcript.assert_is("kubeconfig");
}

#[test]
fn who_may_not_connect_is_told_this() {
    for name in ["limited", "stranger", "admin"] {
        let workstation = person(name);
        let mut transcript = Transcript::of(&workstation);
        let connect = |transcript: &mut Transcript<'_>, flags: &[&str]| {
            transcript.tp(&[&["connect"], flags].concat());
        };

        connect(&mut transcript, &["--namespace", "no-such"]);
        connect(&mut transcript, &["--namespace", "no-such", "-ojson"]);
        connect(&mut transcript, &["--manager-namespace", "nowhere"]);
        if name != "admin" {
            connect(&mut transcript, &["--namespace", "shop"]);
        }

        transcript.assert_is(&format!("refused-{name}"));
    }
}

/// By the port-forward, so that the path is known at once.
const CONNECT: [&str; 5] = [
    "connect",
    "--namespace",
    "team-b",
    "--transport",
    "portforward",
];

#[test]
fn connected_the_commands_say_this() {
    let workstation = person("limited");
    let mut transcript = Transcript::of(&workstation);
    transcript.numbers_vary();

    transcript.tp(&CONNECT);
    transcript.tp(&[&CONNECT[..], &["--output", "json"]].concat());
    for words in [
        &["connect", "--namespace", "shop"][..],
        &["connect", "--namespace", "shop", "--output", "json"],
        &["status"],
        &["status", "--output", "json"],
        &["list"],
        &["list", "--output", "json"],
        &["list", "--output", "yaml"],
        &["list", "--namespace", "shop"],
        &["version"],
        &["version", "--output", "json"],
        &["quit"],
    ] {
        transcript.tp(words);
    }
    transcript.tp(&[&CONNECT[..], &["--output", "json"]].concat());
    transcript.tp(&["quit", "--output", "json"]);
    transcript.tp(&[&CONNECT[..], &["--", "sh", "-c", "exit 7"]].concat());
    transcript.tp(&[&CONNECT[..], &["--", "/no/such/program"]].concat());

    transcript.assert_is("connected");
}

#[test]
fn what_an_administrator_would_do_is_printed_so() {
    testbed().install_tp();
    let workstation = Workstation::without_root_daemon(Account::Member, "admin");
    let mut transcript = Transcript::of(&workstation);
    let image = ["--image", "registry.example/tp:1", "--dry-run"];

    transcript.tp(&[&["install"][..], &image, &["--output", "yaml"]].concat());
    let exposed = ["--replicas", "2", "--expose", "loadbalancer", "-ojson"];
    transcript.tp(&[&["install"][..], &image, &exposed].concat());
    let grant = ["grant", "alice", "--namespace", "shop", "--dry-run"];
    for format in ["text", "json", "yaml"] {
        transcript.tp(&[&grant[..], &["--output", format]].concat());
        transcript.tp(&["uninstall", "--dry-run", "--output", format]);
    }
    transcript.tp(&["grant", "alice", "--namespace", "no-such"]);

    transcript.assert_is("administrator");
}

#[test]
fn the_background_programs_say_this() {
    let workstation = Workstation::without_root_daemon(Account::Member, "dev");
    let mut transcript = Transcript::of(&workstation);

    for words in [
        &["tp-daemon"][..],
        &["tp-daemon", "--help"],
        &["tp-daemon", "--version"],
        &["tp-daemon", "root", "--help"],
        &["tp-daemon", "root"],
        &["tp-daemon", "install", "--help"],
        &["tp-daemon", "install"],
        &["tp-daemon", "uninstall", "--help"],
        &["tp-daemon", "uninstall"],
        &["tp-daemon", "session"],
        &["tp-session", "--help"],
        &["tp-session", "--version"],
    ] {
        transcript.run(Account::Member, words);
    }
    transcript.run(Account::Root, &["tp-daemon", "root", "--sudo"]);
    transcript.tp(&["connect"]);

    transcript.assert_is("daemons");
}

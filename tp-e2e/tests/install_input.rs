//! Bad input and failures of `tp install` and `tp uninstall`: one sentence that names the thing,
//! the documented exit code, nothing changed.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tp_e2e::{
    cluster::testbed,
    files::{file_with, path_of, read_json},
    process::{PATIENCE, run},
};

const COMMANDS: [&[&str]; 2] = [&["install", "--image=localhost/tp:1"], &["uninstall"]];

fn tp_as(person: &str, command: &[&str], flags: &[&str]) -> Command {
    testbed().tp_command(person, &[command, flags].concat())
}

#[track_caller]
fn assert_refused(mut command: Command, code: i32, words: &[&str]) {
    run(&mut command, PATIENCE).assert_refused(code, words);
}

/// The administrator's kubeconfig with one thing changed.
fn altered(change: impl FnOnce(&mut Value)) -> NamedTempFile {
    let mut config = read_json(&testbed().kubeconfig("admin"));
    change(&mut config);

    file_with(&config.to_string())
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    for command in COMMANDS {
        let absent = ["--kubeconfig", "/absent/config"];
        assert_refused(tp_as("admin", command, &absent), 78, &["/absent/config"]);
        for text in [
            "contexts: [",
            "- no\n- map\n",
            "{}",
            "current-context: nowhere\n",
        ] {
            let broken = file_with(text);
            let flags = ["--kubeconfig", path_of(&broken)];
            assert_refused(tp_as("admin", command, &flags), 78, &[path_of(&broken)]);
        }
        let mut none = tp_as("admin", command, &[]);
        none.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        assert_refused(none, 78, &["kubeconfig", "--kubeconfig"]);
    }
}

#[test]
fn names_that_the_kubeconfig_lacks_are_told_with_those_it_has() {
    for command in COMMANDS {
        for (flag, known) in [
            ("--context", "testbed"),
            ("--cluster", "testbed"),
            ("--user", "admin"),
        ] {
            let flags = [flag, "moon"];
            assert_refused(tp_as("admin", command, &flags), 78, &["moon", known]);
        }
    }
}

#[test]
fn an_api_server_that_cannot_be_talked_to_is_named() {
    let closed = altered(|config| {
        config["clusters"][0]["cluster"]["server"] = json!("https://172.30.0.11:6444");
    });
    let untrusted = altered(|config| {
        config["clusters"][0]["cluster"]
            .as_object_mut()
            .unwrap()
            .remove("certificate-authority-data");
    });
    for command in COMMANDS {
        for (config, server) in [
            (&closed, "172.30.0.11:6444"),
            (&untrusted, "172.30.0.11:6443"),
        ] {
            let flags = ["--kubeconfig", path_of(config)];
            assert_refused(tp_as("admin", command, &flags), 69, &[server]);
        }
    }
}

#[test]
fn rights_that_are_missing_are_named() {
    testbed().install_tp();
    assert_refused(
        tp_as("dev", COMMANDS[0], &[]),
        77,
        &["dev", "statefulsets", "tp-system"],
    );
    assert_refused(tp_as("dev", COMMANDS[1], &[]), 77, &["dev", "sessions"]);
    // The flag counts: an administrator who impersonates a user has only that user's rights.
    let flags = ["--as", "dev"];
    assert_refused(tp_as("admin", COMMANDS[1], &flags), 77, &["dev"]);

    testbed().manager_ready();
}

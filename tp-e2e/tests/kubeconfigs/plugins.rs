//! Programs that log in: `client.authentication.k8s.io`.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tp_e2e::{
    cluster::testbed,
    process::{PATIENCE, eventually},
    terminal::Terminal,
    user::Account,
};

use super::support::{Both, Desk, user};

/// Functions for plugins. Each run leaves a line in `runs`.
const FUNCTIONS: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$$" >>"$here/runs"
give() {
    printf '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": "%s" %s}}' "$(cat "$here/token-$1")" "$2"
}
"#;

/// A desk with a plugin and the tokens `token-1` and `token-2` of a service account.
struct Login {
    desk: Desk,
    kubeconfig: Value,
}

/// Once for all tests: a service account of `shop` that may connect there.
fn robot() {
    testbed().install_tp();
    testbed().kubectl_apply(
        r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tp-robot, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tp-user}
subjects: [{kind: ServiceAccount, name: robot, namespace: shop}]
"#,
    );
}

impl Login {
    /// `script` is the plugin, after [`FUNCTIONS`].
    fn new(script: &str, mode: &str) -> Self {
        robot();
        let desk = Desk::new();
        for token in ["token-1", "token-2"] {
            let text = testbed().kubectl(&["-n", "shop", "create", "token", "robot"]);
            desk.write(&format!("tried/{token}"), text.trim());
        }
        let file = desk.write("tried/login.sh", &format!("{FUNCTIONS}{script}\n"));
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&file, permissions).unwrap();
        Account::Member.own(&file);
        let mut kubeconfig = desk.kubeconfig();
        *user(&mut kubeconfig) = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./login.sh",
            "interactiveMode": mode,
        }});

        Self { desk, kubeconfig }
    }

    /// With both programs; kubectl has run the plugin then as well.
    #[track_caller]
    fn both(&self, name: &str) -> Both {
        self.desk.with(name, &self.kubeconfig)
    }

    fn file(&self) -> PathBuf {
        self.desk
            .write("tried/config", &self.kubeconfig.to_string())
    }

    /// Process numbers of the runs until now.
    fn runs(&self) -> Vec<String> {
        let runs = self.desk.workstation.home().join("tried/runs");
        let runs = fs::read_to_string(runs).unwrap_or_default();

        runs.lines().map(str::to_owned).collect()
    }

    fn forget_runs(&self) {
        let _ = fs::remove_file(self.desk.workstation.home().join("tried/runs"));
    }

    /// `tp connect` on a terminal that is its own.
    fn on_a_terminal(&self) -> Terminal {
        let file = self.file();
        let words = ["setsid", "--ctty", "--wait", "tp", "connect"];
        let flags = [
            "--namespace",
            "shop",
            "--kubeconfig",
            file.to_str().unwrap(),
        ];

        Terminal::start(&mut self.desk.command(&[&words[..], &flags].concat(), &[]))
    }
}

#[test]
fn a_plugin_runs_once_for_a_login() {
    let login = Login::new("give 1", "IfAvailable");

    login.both("a plugin").expect_success("a plugin");
    assert_eq!(login.runs().len(), 2, "once for kubectl, once for tp");
}

#[test]
fn tokens_that_live_for_seconds_and_differ_each_time_serve() {
    let script = r#"
        give $((1 + $(wc -l <"$here/runs") % 2)) \
            ", \"expirationTimestamp\": \"$(date -u -d '+3 seconds' +%Y-%m-%dT%H:%M:%SZ)\""
    "#;
    let login = Login::new(script, "IfAvailable");

    for round in 0..3 {
        login
            .both("short")
            .expect_success(&format!("round {round}"));
    }
}

#[test]
fn a_plugin_asks_on_the_terminal_of_the_command() {
    let script = r#"
        echo "To sign in enter the code ABCD" >&2
        read -r code </dev/tty
        [ "$code" = "ABCD" ] && give 1
    "#;
    let login = Login::new(script, "IfAvailable");

    let mut terminal = login.on_a_terminal();
    terminal.wait_for("enter the code ABCD", PATIENCE);
    terminal.enter("ABCD");

    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, Some(0), "{screen}");
    assert_eq!(login.runs().len(), 1, "{screen}");
    // Asked again, it is the connection there is, and nobody logs in for it.
    let file = login.file();
    let flags = [
        "connect",
        "--namespace",
        "shop",
        "--kubeconfig",
        file.to_str().unwrap(),
    ];
    login.desk.tp(&flags, &[]).expect_success();
    assert_eq!(login.runs().len(), 1);
    login.desk.tp(&["quit"], &[]).expect_success();
}

#[test]
fn nothing_is_left_of_a_login_that_is_interrupted() {
    let script = r#"
        echo "waiting for you" >&2
        sleep 300
        give 1
    "#;
    let login = Login::new(script, "IfAvailable");

    let mut terminal = login.on_a_terminal();
    terminal.wait_for("waiting for you", PATIENCE);
    terminal.interrupt();

    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, Some(130), "{screen}");
    let pid = login.runs().pop().unwrap();
    eventually(
        "the plugin to end",
        Duration::from_secs(5),
        || match fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) if !status.contains("State:\tZ") => Err(status),
            _ => Ok(()),
        },
    );
    login.desk.tp(&["status"], &[]).expect_code(3);
}

#[test]
fn a_plugin_that_must_ask_is_refused_where_there_is_no_terminal() {
    let login = Login::new("give 1", "Always");

    login.both("Always").expect_refusal(
        "Always",
        78,
        &["login.sh", "interactiveMode: Always", "terminal"],
    );
    assert_eq!(login.runs().len(), 0);
}

#[test]
fn a_plugin_that_fails_is_named_and_its_words_are_seen() {
    let login = Login::new(
        "echo secret; echo 'log in with robotctl' >&2; exit 3",
        "Never",
    );

    let both = login.both("a failure");
    let said = both.tp.stderr.clone();
    both.expect_refusal("a failure", 78, &["login.sh", "log in with robotctl"]);
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_plugin_goes_by_the_shell_that_asks() {
    let login = Login::new(r#"[ "$PROFILE" = robot ] && give 1"#, "IfAvailable");
    let file = login.file();
    let connect = [
        "connect",
        "--namespace",
        "shop",
        "--kubeconfig",
        file.to_str().unwrap(),
    ];

    // The session that is started here has the other shell's environment.
    let other = login.desk.tp(&connect, &[("PROFILE", "nobody")]);
    assert_eq!(other.code(), 78, "{other}");
    let robot = login.desk.tp(&connect, &[("PROFILE", "robot")]);
    assert!(robot.status.success(), "{robot}");
    login.forget_runs();
    let other = login.desk.tp(&connect, &[("PROFILE", "nobody")]);
    assert_eq!(other.code(), 78, "{other}");
    assert_eq!(login.runs().len(), 1);
    login.desk.tp(&["quit"], &[]).expect_success();
}

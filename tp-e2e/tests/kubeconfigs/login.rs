//! A developer whose kubeconfig names a credential plugin.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tp_e2e::{
    applied::{Robot, token_of},
    cluster::testbed,
    process::{Finished, PATIENCE, Running, eventually},
    terminal::Terminal,
    user::Account,
};

use super::support::{Both, Desk, user};

/// For a process to end.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Functions for plugins. Each run adds a line to `runs`, and its parent's process id to `parent`.
const FUNCTIONS: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$PPID" >"$here/parent"
echo "$$" >>"$here/runs"
give() {
    printf '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": "%s" %s}}' "$(cat "$here/token-$1")" "$2"
}
"#;

/// A desk with a plugin, the tokens `token-1` and `token-2` of a service account that may connect
/// to `shop`, and the token `token-other` of another one.
pub(crate) struct Login {
    pub(crate) desk: Desk,
    pub(crate) kubeconfig: Value,
    _robot: Robot,
}

impl Login {
    /// `script` is the plugin, after [`FUNCTIONS`].
    pub(crate) fn new(script: &str, mode: &str) -> Self {
        testbed().install_tp();
        let robot = Robot::make("robot");
        let desk = Desk::new();
        for (name, account) in [("1", "robot"), ("2", "robot"), ("other", "default")] {
            desk.workstation
                .write_file(&format!("tried/token-{name}"), &token_of(account));
        }
        let file = desk
            .workstation
            .write_file("tried/login.sh", &format!("{FUNCTIONS}{script}\n"));
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&file, permissions).unwrap();
        Account::Member.own(&file);
        let mut kubeconfig = desk.kubeconfig();
        *user(&mut kubeconfig) = json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./login.sh",
            "interactiveMode": mode,
        }});

        Self {
            desk,
            kubeconfig,
            _robot: robot,
        }
    }

    /// Logs in with both programs; kubectl also runs the plugin.
    #[track_caller]
    pub(crate) fn both(&self, name: &str) -> Both {
        self.desk.with(name, &self.kubeconfig)
    }

    /// `tp connect` in a shell with these variables.
    #[track_caller]
    pub(crate) fn connect(&self, variables: &[(&str, &str)]) -> Finished {
        let flags = self.flags();

        self.desk
            .connect(&flags.each_ref().map(String::as_str), variables)
    }

    /// Starts `tp connect` in the background without a terminal, even if the test has one.
    #[track_caller]
    pub(crate) fn start(&self, variables: &[(&str, &str)]) -> Running {
        let flags = self.flags();
        let words = ["setsid", "--wait", "tp", "connect", "--namespace", "shop"];
        let words = [&words[..], &flags.each_ref().map(String::as_str)].concat();

        Running::start(&mut self.desk.command(&words, variables))
    }

    /// Starts `tp connect` on a terminal of its own.
    #[track_caller]
    pub(crate) fn on_a_terminal(&self, variables: &[(&str, &str)]) -> Terminal {
        let flags = self.flags();
        let terminal = ["setsid", "--ctty", "--wait"];
        let words = ["tp", "connect", "--namespace", "shop", &flags[0], &flags[1]];

        Terminal::start(
            &mut self
                .desk
                .command(&[&terminal[..], &words].concat(), variables),
        )
    }

    /// The flags for the kubeconfig, which a session may already have read.
    pub(crate) fn flags(&self) -> [String; 2] {
        let text = self.kubeconfig.to_string();
        let file = self.path("config");
        if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            self.desk.workstation.write_file("tried/config", &text);
        }

        ["--kubeconfig".to_owned(), file.display().to_string()]
    }

    /// A file in the folder of the plugin.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.desk.workstation.home().join("tried").join(name)
    }

    /// The file's text; empty if it is missing.
    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The process id that the plugin writes into a file.
    #[track_caller]
    pub(crate) fn process(&self, name: &str) -> u32 {
        eventually(&format!("a process in {name}"), PATIENCE, || {
            let text = self.text(name);
            match text.strip_suffix('\n').map(str::parse) {
                Some(Ok(pid)) => Ok(pid),
                _ => Err(text),
            }
        })
    }

    /// Process ids of the runs so far.
    pub(crate) fn runs(&self) -> Vec<u32> {
        let runs = self.text("runs");

        runs.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    pub(crate) fn forget_runs(&self) {
        let _ = fs::remove_file(self.path("runs"));
    }
}

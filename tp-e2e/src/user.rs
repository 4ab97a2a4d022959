//! Accounts of this machine that tests run as.

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

/// The account that runs a program on the workstation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    Root,
    /// An unprivileged user in the group `tp`.
    Member,
    /// Another unprivileged user in the group. A session steers all processes of its user, so the
    /// shared session must not be of a user whose sessions come and go.
    Colleague,
    /// An unprivileged user outside that group.
    Outsider,
}

impl Account {
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Member => "tp-dev",
            Self::Colleague => "tp-dev2",
            Self::Outsider => "tp-other",
        }
    }

    /// Makes the account if it is missing.
    pub fn ensure(self) {
        static ACCOUNTS: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
        if self == Self::Root || exists("passwd", self.name()) {
            return;
        }
        if !exists("group", "tp") {
            system("groupadd", &["--system", "tp"]);
        }
        let mut arguments = vec![
            "--system",
            "--no-create-home",
            "--home-dir=/nonexistent",
            "--shell=/bin/sh",
            "--user-group",
        ];
        if self != Self::Outsider {
            arguments.push("--groups=tp");
        }
        arguments.push(self.name());
        system("useradd", &arguments);
    }

    /// The prefix that runs a command as this account, without capabilities.
    pub fn prefix(self) -> Vec<String> {
        if self == Self::Root {
            return Vec::new();
        }
        [
            "setpriv",
            "--reuid",
            self.name(),
            "--regid",
            self.name(),
            "--init-groups",
            "--",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Gives a file or folder with its content to this account.
    pub fn own(self, path: &Path) {
        let owner = format!("{0}:{0}", self.name());
        system("chown", &["-R", &owner, &path.display().to_string()]);
    }
}

fn exists(database: &str, name: &str) -> bool {
    Command::new("getent")
        .args([database, name])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn system(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

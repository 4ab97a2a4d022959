//! Steps that many tests take at a workstation.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::Workstation;
use crate::{
    process::{Running, eventually, run},
    user::Account,
};

pub const CONNECT_TO_SHOP: [&str; 4] = ["tp", "connect", "--namespace", "shop"];
pub const READ_WEB: [&str; 5] = ["curl", "-sS", "--max-time", "10", "http://web/"];

/// For the tunnel to find the better path, or another one.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(15);
/// For a change in the cluster to be known.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

impl Workstation {
    /// Starts a root daemon and connects to this namespace.
    #[track_caller]
    pub fn connected(account: Account, person: &str, namespace: &str, flags: &[&str]) -> Self {
        let workstation = Self::new(account, person);
        workstation.connect(&[&["--namespace", namespace], flags].concat());
        workstation
    }

    /// Starts a program in the background, as this person.
    #[track_caller]
    pub fn start(&self, words: &[&str]) -> Running {
        Running::start(&mut self.command(words))
    }

    /// Reads the page of the service `web`, which must succeed.
    #[track_caller]
    pub fn read_web(&self) -> String {
        self.run(&READ_WEB).expect_success()
    }

    /// Checks that a connection to a closed port of the service `web` is refused.
    #[track_caller]
    pub fn assert_closed_port_refuses(&self) {
        self.run(&["curl", "-sS", "http://web:81/"]).expect_code(7);
    }

    /// The report of an echo of so many bytes.
    #[track_caller]
    pub fn exchange(&self, size: u64) -> Value {
        let size = size.to_string();
        self.echo(&["talk", "-send", &size, "-half-close", "echo:7000"])
    }

    /// Waits until a service of the connected namespace answers, as after a loss.
    #[track_caller]
    pub fn reaches_again(&self, bound: Duration) {
        eventually("the cluster to be reached again", bound, || {
            let mut ask = self.command(&["curl", "-sS", "--max-time", "3", "http://web/"]);
            let asked = run(&mut ask, Duration::from_secs(10));
            if asked.status.success() {
                Ok(())
            } else {
                Err(asked.to_string())
            }
        });
    }

    /// Waits until the tunnel uses this path; returns its part of `tp status`.
    #[track_caller]
    pub fn expect_path(&self, path: &str) -> Value {
        eventually(&format!("the path {path}"), SWITCH_TIMEOUT, || {
            let status = self.status();
            if status["transport"]["path"] == path && status["state"] == "connected" {
                Ok(status["transport"].clone())
            } else {
                Err(format!("{} {}", status["state"], status["transport"]))
            }
        })
    }

    /// Waits until `tp status` shows this state; the session may not exist yet.
    #[track_caller]
    pub fn expect_soon(&self, state: &str) {
        eventually(state, Duration::from_secs(10), || {
            let status = self.tp(&["status", "--output", "json"]);
            match status.json()["state"].clone() {
                told if told == state => Ok(()),
                told => Err(told.to_string()),
            }
        });
    }

    /// Waits until a name has this address and no other.
    #[track_caller]
    pub fn expect_address(&self, name: &str, address: &str) {
        eventually(&format!("{name} to be {address}"), CHANGE_TIMEOUT, || {
            let said = self.run(&["dig", "+short", "+time=3", "+tries=1", name]);
            if said.stdout.trim() == address {
                Ok(())
            } else {
                Err(said.to_string())
            }
        });
    }

    /// Writes a file of this person's below the home directory.
    #[track_caller]
    pub fn write_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home().join(name);
        let folder = path.parent().expect("it is below the home directory");
        fs::create_dir_all(folder).expect("own folders are writable");
        fs::write(&path, text).expect("own folders are writable");
        // The first folder below the home directory, with its content.
        let first = Path::new(name).components().next().expect("it has a name");
        self.account().own(&self.home().join(first));

        path
    }
}

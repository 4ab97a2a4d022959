//! The workstation's data path in network namespaces, without a cluster: real root daemon, real
//! kernel, the session's relay and DNS service, over a tunnel whose far side decides by the port.
//! Needs root.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Command, thread, time::Duration};

use serde_json::{Value, json};
use tp_e2e::{
    datapath::{Machine, Process},
    process::eventually,
};

mod aliases;
mod attacks;
mod bindings;
mod bounds;
mod circles;
mod clients;
mod connects;
mod containers;
mod credentials;
mod ends;
mod firewalls;
mod hooks;
mod names;
mod privacy;
mod ranges;
mod requests;
mod sessions;

/// A service of the far side's table.
const WEB: &str = "web.shop.svc.cluster.local.";
const WEB_ADDRESS: &str = "10.96.1.2";

const HELPER: &str = env!("CARGO_BIN_EXE_datapath");

fn machine() -> Machine {
    Machine::new(Path::new(HELPER))
}

#[track_caller]
fn sh(command: &str) {
    let done = Command::new("sh").args(["-c", command]).status();
    assert!(done.is_ok_and(|status| status.success()), "{command}");
}

/// A user's cgroup; removed when dropped.
struct Cgroup(String);

impl Cgroup {
    fn new(uid: u32) -> Self {
        Self::named(uid, &uid.to_string())
    }

    /// The name may be that of one below an existing one.
    fn named(uid: u32, name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts
            .lines()
            .find_map(|line| {
                line.split(' ')
                    .nth(1)
                    .filter(|_| line.contains(" cgroup2 "))
            })
            .unwrap();
        let path = format!("{root}/tpdp-{}-{name}", std::process::id());
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        &self.0
    }

    fn scope(&self) -> String {
        json!({"cgroup": {"path": self.path()}}).to_string()
    }

    /// The report of an application of this user in the cgroup.
    #[track_caller]
    fn app(&self, machine: &Machine, uid: u32, words: &[&str]) -> Value {
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.path());
        let app = machine.helper_words(uid, &[&["app"], words].concat());
        let mut words = vec!["sh", "-c", &enter, "sh"];
        words.extend(app.iter().map(String::as_str));

        Process::start(&mut machine.command(&words)).object()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if thread::panicking() {
            // What the failure has left running may still be there.
            let _ = fs::remove_dir(&self.0);
            return;
        }
        eventually("the cgroup to be empty", Duration::from_secs(2), || {
            fs::remove_dir(&self.0).map_err(|error| error.to_string())
        });
    }
}

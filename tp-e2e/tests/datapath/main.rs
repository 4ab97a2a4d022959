//! The workstation's data path in network namespaces, without a cluster: real root daemon, real
//! kernel, the session's relay and DNS service, over a tunnel whose far side decides by the port.
//! Needs root.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Command, time::Duration};

use tp_e2e::{datapath::Machine, process::eventually};

mod aliases;
mod attacks;
mod bindings;
mod bounds;
mod circles;
mod connects;
mod containers;
mod credentials;
mod ends;
mod firewalls;
mod names;
mod privacy;
mod ranges;
mod requests;

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
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts
            .lines()
            .find_map(|line| {
                line.split(' ')
                    .nth(1)
                    .filter(|_| line.contains(" cgroup2 "))
            })
            .unwrap();
        let path = format!("{root}/tpdp-{}-{uid}", std::process::id());
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        eventually("the cgroup to be empty", Duration::from_secs(2), || {
            fs::remove_dir(&self.0).map_err(|error| error.to_string())
        });
    }
}

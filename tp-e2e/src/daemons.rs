//! The programs that `tp` leaves in the background for one workstation.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    process::{eventually, kill_if_there},
    workstation::Workstation,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Session,
    Root,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Root => "root",
        }
    }

    fn is_role_of(self, mut words: impl Iterator<Item = impl AsRef<[u8]>>) -> bool {
        let Some(program) = words.next() else {
            return false;
        };
        match self {
            Self::Session => program.as_ref().ends_with(b"tp-session"),
            Self::Root => {
                program.as_ref().ends_with(b"tp-daemon")
                    && words.next().is_some_and(|role| role.as_ref() == b"root")
            }
        }
    }
}

/// The running ones; no zombies.
pub fn of(workstation: &Workstation, role: Role) -> Vec<u32> {
    let home = workstation.home().display().to_string();
    let processes = fs::read_dir("/proc").expect("there is a /proc");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let words = read("cmdline");
            role.is_role_of(words.split(|byte| *byte == 0))
                && String::from_utf8_lossy(&read("environ")).contains(&home)
        })
        .collect()
}

/// The only running one.
#[track_caller]
pub fn only(workstation: &Workstation, role: Role) -> u32 {
    match of(workstation, role).as_slice() {
        [pid] => *pid,
        pids => panic!("one {} daemon is expected instead of {pids:?}", role.name()),
    }
}

/// Kills all; they may have ended already.
pub fn kill(workstation: &Workstation, role: Role) {
    for pid in of(workstation, role) {
        kill_if_there(pid, Signal::KILL);
    }
}

/// Fails the test if one still runs after the timeout.
#[track_caller]
pub fn assert_none(workstation: &Workstation, bound: Duration) {
    eventually("the daemons to be gone", bound, || {
        let left = [Role::Session, Role::Root].map(|role| of(workstation, role));
        if left.concat().is_empty() {
            Ok(())
        } else {
            Err(format!("sessions and root daemons: {left:?}"))
        }
    });
}

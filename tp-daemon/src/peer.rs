//! The process at the other end of a connection, and whether its user is served.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{request_error::RequestError, sys};

/// Served connections of one user at a time.
pub(crate) const MAX_CONNECTIONS_PER_UID: usize = 8;

/// The process that connected, as the kernel recorded it then.
#[derive(Debug)]
pub(crate) struct PeerProcess {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// A pidfd: the pid may be reused later.
    process: Option<OwnedFd>,
}

impl PeerProcess {
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        let (pid, uid, gid) = sys::peer_credentials(&socket)?;
        let groups = sys::peer_groups(&socket)?;

        Ok(Self {
            pid,
            uid,
            gid,
            groups,
            process: process_of(&socket, pid),
        })
    }

    /// The capabilities in the user namespace `user_ns` that the session's programs may have without
    /// having gained privileges. A peer in another namespace may have all of them there, and has
    /// none here.
    ///
    /// For users other than root these are the ambient ones: the kernel clears them when a process
    /// executes a program that grants privileges (capabilities(7)), as the peer may have done since
    /// it connected.
    pub(crate) fn capabilities_in(&self, user_ns: u32) -> Result<u64, RequestError> {
        if user_namespace(&self.pid.to_string())? != user_ns {
            return Ok(0);
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        self.check_is_there()?;
        let capabilities = parse_capabilities(&status, self.uid);

        capabilities.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into())
    }

    /// Fails once the process has ended. After a success, what was read from `/proc/PID` before was its
    /// own.
    pub(crate) fn check_is_there(&self) -> Result<(), RequestError> {
        let has_ended = match &self.process {
            Some(process) => {
                let mut ends = [PollFd::new(process, PollFlags::IN)];
                poll(&mut ends, Some(&Timespec::default())).map_err(io::Error::from)? > 0
            }
            None => true,
        };
        if has_ended {
            return Err(RequestError::permission(
                "the process that connected to the root daemon has ended",
            ));
        }

        Ok(())
    }
}

/// A pidfd of the process that connected. Before Linux 6.5 it is that of the process that has the
/// pid when the connection is accepted.
fn process_of(socket: impl AsFd, pid: u32) -> Option<OwnedFd> {
    match sys::peer_process(socket) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        }
        process => process.ok(),
    }
}

/// The inode number of the user namespace of `process`, a pid or "self".
pub(crate) fn user_namespace(process: &str) -> io::Result<u32> {
    let number = fs::metadata(format!("/proc/{process}/ns/user"))?.ino();

    u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn parse_capabilities(status: &str, uid: u32) -> Option<u64> {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let mut ids = field("Uid:")?.split_whitespace();
    if !ids.all(|id| id.parse() == Ok(uid)) {
        return Some(0);
    }
    let set = if uid == 0 { "CapPrm:" } else { "CapAmb:" };

    u64::from_str_radix(field(set)?.trim(), 16).ok()
}

/// The users that are served.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audience {
    /// Root and, if there is such a group, its members.
    Group { gid: Option<u32> },
    /// The one user who started the root daemon with sudo.
    Only { uid: u32 },
}

impl Audience {
    pub(crate) fn check(self, peer: &PeerProcess) -> Result<(), RequestError> {
        match self {
            Self::Only { uid } if uid == peer.uid => Ok(()),
            Self::Only { .. } => Err(RequestError::permission(
                "this root daemon was started with sudo and serves only the user who did so",
            )),
            Self::Group { .. } if peer.uid == 0 => Ok(()),
            Self::Group { gid: Some(gid) } if peer.gid == gid || peer.groups.contains(&gid) => {
                Ok(())
            }
            Self::Group { .. } => Err(RequestError::permission(
                "only root and members of the group tp may use the root daemon: add your user \
                 to the group (`sudo usermod -aG tp $USER`) and log in again",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_by_supplementary_group_is_served() {
        let admission = Audience::Group { gid: Some(70) };

        assert!(admission.check(&peer(1000, 1000, &[10, 70])).is_ok());
        assert!(admission.check(&peer(1000, 70, &[])).is_ok());
        assert!(admission.check(&peer(0, 0, &[])).is_ok());
        assert!(admission.check(&peer(1000, 1000, &[10])).is_err());
    }

    #[test]
    fn a_daemon_of_sudo_serves_nobody_else_not_even_root() {
        let admission = Audience::Only { uid: 1000 };

        assert!(admission.check(&peer(1000, 1000, &[])).is_ok());
        assert!(admission.check(&peer(1001, 1000, &[])).is_err());
        assert!(admission.check(&peer(0, 0, &[])).is_err());
    }

    #[test]
    fn capabilities_are_read_from_the_status_of_a_process() {
        let status = |ids| {
            format!(
                "Name:\tx\nUid:\t{ids}\nCapInh:\t0000000000000000\n\
                 CapPrm:\t00000000a80425fb\nCapAmb:\t0000000000002000\n"
            )
        };

        assert_eq!(parse_capabilities(&status("0 0 0 0"), 0), Some(0xa804_25fb));
        assert_eq!(parse_capabilities(&status("7 7 7 7"), 7), Some(0x2000));
        // It has executed a set-user-id program of root's since.
        assert_eq!(parse_capabilities(&status("7 0 0 0"), 7), Some(0));
        assert_eq!(parse_capabilities("Name:\tx\n", 7), None);
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> PeerProcess {
        PeerProcess {
            pid: 1,
            uid,
            gid,
            groups: groups.to_vec(),
            process: None,
        }
    }
}

//! The private network namespace of a session, which has no name. Entered through a descriptor of
//! the session, to break its content.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// `TUNGETDEVNETNS` of Linux 5.2: the namespace of a TUN device.
const TUN_NAMESPACE: libc::Ioctl = 0x54e3;

/// The namespace with a session's TUN device.
#[derive(Debug)]
pub struct PrivateNamespace(OwnedFd);

impl PrivateNamespace {
    /// The namespace of the session with this process id.
    #[track_caller]
    pub fn of(session: u32) -> Self {
        let tun = device(session, "/dev/net/tun").expect("a session has a TUN device");
        // SAFETY: the request takes no argument and gives a new descriptor, which nobody else has.
        let namespace = unsafe {
            let namespace = libc::ioctl(tun.as_raw_fd(), TUN_NAMESPACE);
            assert!(namespace >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(namespace)
        };

        Self(namespace)
    }

    /// Runs a command inside, which must succeed.
    #[track_caller]
    pub fn run(&self, words: &[&str]) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        let output = Command::new("nsenter")
            .arg(format!("--net={path}"))
            .args(words)
            .output()
            .expect("nsenter starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {stderr}");
    }

    /// Removes the TUN device, which ends the relay.
    #[track_caller]
    pub fn delete_tun(&self) {
        self.run(&["ip", "link", "delete", "tun0"]);
    }

    /// Aborts the socket that accepts connections.
    #[track_caller]
    pub fn abort_listener(&self) {
        self.run(&["ss", "--kill", "--listening", "--tcp", "--no-header"]);
    }

    /// Aborts the socket that receives queries.
    #[track_caller]
    pub fn abort_udp(&self) {
        self.run(&["ss", "--kill", "--all", "--udp", "--no-header"]);
    }
}

/// A copy of a process's first descriptor that is open on this path.
fn device(pid: u32, path: &str) -> Option<OwnedFd> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let number = folder.flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        (target.to_str() == Some(path)).then(|| entry.file_name())
    })?;
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let number = number.to_str()?.parse().ok()?;

    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).ok()
}

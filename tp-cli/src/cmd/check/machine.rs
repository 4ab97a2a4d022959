//! Checks of the kernel and the root daemon that need no privileges.

use std::{fs, os::unix::fs::FileTypeExt as _, path::Path};

use tp_proto::{fault::Fault, local::Check, version};
use tp_root_api::PROTOCOL;

use crate::{
    files,
    root_daemon::{self, Answer, Running},
};

/// The oldest kernel that the eBPF programs support.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// The first with TCX, which attaches programs to an interface without a filter.
const TCX: (u32, u32) = (6, 6);

pub(super) fn checks() -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();

    vec![
        kernel(release.trim()),
        btf(Path::new("/sys/kernel/btf/vmlinux")),
        cgroup(&mounts),
        tun(Path::new("/dev/net/tun")),
        root_daemon(),
    ]
}

fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";

    let mut numbers = release.split(['.', '-']).map_while(|it| it.parse().ok());
    let version = numbers.next().zip(numbers.next());
    match version {
        Some(version) if version >= TCX => Check::ok(NAME, format!("Linux {release}, with TCX")),
        Some(version) if version >= OLDEST_KERNEL => Check::ok(
            NAME,
            format!("Linux {release}, with filters in place of TCX, which is of 6.6"),
        ),
        _ => Check::failed(
            NAME,
            format!("Linux {release} is older than what tp needs"),
            "use a kernel of 6.1 or later",
        ),
    }
}

fn btf(path: &Path) -> Check {
    let path_text = path.display();
    match path.exists() {
        true => Check::ok("btf", format!("{path_text} exists")),
        false => Check::failed(
            "btf",
            format!("{path_text} does not exist, so eBPF programs cannot be fitted to this kernel"),
            "use a kernel that was built with CONFIG_DEBUG_INFO_BTF, as those of distributions are",
        ),
    }
}

fn cgroup(mounts: &str) -> Check {
    let place = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        // A subtree, as in some containers, does not contain other programs.
        let is_whole = fields.next()? == "/";
        let target = fields.next()?;

        (is_whole && source.starts_with("cgroup2 ")).then_some(target)
    });
    match place {
        Some(place) => Check::ok("cgroup", format!("cgroup v2 at {place}")),
        None => Check::failed(
            "cgroup",
            "no whole cgroup v2 is mounted, to which the eBPF programs are attached",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup",
        ),
    }
}

fn tun(path: &Path) -> Check {
    let path_text = path.display();
    let is_device = fs::metadata(path).is_ok_and(|it| it.file_type().is_char_device());
    match is_device {
        true => Check::ok("tun", format!("{path_text} exists")),
        // The root daemon may be able to make one.
        false => Check::warning(
            "tun",
            format!("{path_text} does not exist"),
            "`sudo modprobe tun` makes it; a container gets it with `--device /dev/net/tun`",
        ),
    }
}

fn understands(root_daemon: &Running) -> Result<(), Fault> {
    version::check("the root daemon", &root_daemon.version)?;

    version::check_root_protocol(&root_daemon.version, root_daemon.protocol, PROTOCOL)
}

fn root_daemon() -> Check {
    const NAME: &str = "root daemon";

    let socket = tp_root_api::socket_path();
    let socket = socket.display();
    match root_daemon::hello() {
        Answer::Running(running) => match understands(&running) {
            Ok(()) => {
                let kind = match running.ends_with_last_session {
                    true => "started by `tp connect`",
                    false => "a service",
                };
                Check::ok(NAME, format!("version {}, {kind}", running.version))
            }
            Err(fault) => Check::failed(NAME, fault.message, ""),
        },
        Answer::Absent => absent(),
        Answer::Ending => Check::ok(NAME, "ends with its last session at this moment"),
        Answer::Denied(reason) => Check::failed(
            NAME,
            format!("the one at {socket} refuses this user"),
            &reason,
        ),
        Answer::Broken(reason) => Check::failed(
            NAME,
            format!("the one at {socket} is unusable ({reason})"),
            "`sudo systemctl restart tp-daemon`",
        ),
    }
}

/// No root daemon runs: how the next `tp connect` would start it.
fn absent() -> Check {
    const NAME: &str = "root daemon";

    let program = match files::daemon_for_root() {
        Ok(program) => program,
        Err(fault) => return Check::failed(NAME, fault.message, ""),
    };
    let program = program.display();
    if rustix::process::geteuid().is_root() {
        return Check::ok(NAME, format!("not running; `tp connect` starts {program}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|dir| dir.join("sudo").is_file()) {
        true => Check::ok(NAME, through_sudo(&program.to_string(), has_systemd())),
        false => Check::failed(
            NAME,
            "not running, and there is no sudo to start it with",
            &format!("run `{program} install` as root once"),
        ),
    }
}

/// Does not ask sudo: it would log an attempt.
fn through_sudo(program: &str, has_systemd: bool) -> String {
    let service = match has_systemd {
        true => format!(" (`sudo {program} install` makes it a service)"),
        false => String::new(),
    };

    format!("not running; `tp connect` starts {program} through sudo, if sudo lets you{service}")
}

/// As sd_booted(3) checks it.
fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_what_they_have() {
        for (release, state, words) in [
            ("6.12.101-amd64", "ok", "with TCX"),
            ("6.6.0", "ok", "with TCX"),
            ("6.1.0-49-amd64", "ok", "filters in place of TCX"),
            ("7.0-rc1", "ok", "with TCX"),
            ("5.15.0-91-generic", "failed", "older"),
            ("6.0.9", "failed", "older"),
            ("", "failed", "older"),
        ] {
            let check = kernel(release);
            assert_eq!(check.state, state, "{release}");
            assert!(check.message.contains(words), "{check:?}");
        }
    }

    #[test]
    fn sudo_is_no_promise_and_a_service_needs_systemd() {
        let (with, without) = (through_sudo("/p", true), through_sudo("/p", false));

        for said in [&with, &without] {
            assert!(said.contains("through sudo, if sudo lets you"), "{said}");
        }
        assert!(
            with.contains("`sudo /p install` makes it a service"),
            "{with}"
        );
        assert!(!without.contains("service"), "{without}");
    }

    #[test]
    fn what_is_missing_has_a_remedy() {
        let absent = Path::new("/does/not/exist");
        let v1 = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let part = "31 30 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

        for (check, state) in [
            (btf(absent), "failed"),
            (tun(absent), "warning"),
            (cgroup(v1), "failed"),
            (cgroup(part), "failed"),
        ] {
            assert_eq!(check.state, state, "{check:?}");
            assert_ne!(check.remedy, "", "{check:?}");
        }
        // A regular file is no device.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(tun(file.path()).state, "warning");
    }

    #[test]
    fn the_unified_hierarchy_is_found_beside_the_old_ones() {
        let mounts = "\
            30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";

        let check = cgroup(mounts);

        assert_eq!(check.message, "cgroup v2 at /sys/fs/cgroup/unified");
    }
}

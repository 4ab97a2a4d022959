//! Reaches what containers hide or protect, by mounts of our own that have no path (fsmount(2)).
//! Such a mount ends with its descriptor.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use anyhow::{Context as _, bail};
use rustix::{
    fs::{FileType, Mode, OFlags, makedev, mknodat, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use crate::request_error::RequestError;

const TUN: &str = "/dev/net/tun";
/// Major and minor number of [`TUN`], from the kernel's list of devices.
const TUN_NUMBERS: (u32, u32) = (10, 200);

/// The capabilities that every data path needs.
const CAPABILITIES: [(u32, &str); 2] = [(12, "NET_ADMIN"), (21, "SYS_ADMIN")];

/// Fails with a sentence that names the missing capabilities of this process.
pub(crate) fn check_capabilities() -> anyhow::Result<()> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        let flags: Vec<_> = missing
            .iter()
            .map(|name| format!("--cap-add {name}"))
            .collect();
        bail!(
            "the root daemon lacks the capability CAP_{}: in a container, start the container with \
             `{}`",
            missing.join(" and CAP_"),
            flags.join(" ")
        );
    }

    Ok(())
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default();

    CAPABILITIES
        .iter()
        .filter(|(number, _)| effective & (1 << number) == 0)
        .map(|(_, name)| *name)
        .collect()
}

/// Writes a sysctl of the calling thread's network namespace, also where /proc/sys is read-only.
/// Does nothing if the kernel lacks the `family`.
pub(crate) fn set_sysctl(
    family: &str,
    interface: &str,
    key: &str,
    value: &str,
) -> Result<(), RequestError> {
    let path = format!("sys/net/{family}/conf/{interface}/{key}");
    let Err(error) = fs::write(format!("/proc/{path}"), value) else {
        return Ok(());
    };
    let is_protected = matches!(
        error.raw_os_error(),
        Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::ENOENT)
    );
    if !is_protected {
        return Err(anyhow::anyhow!("cannot write /proc/{path}: {error}").into());
    }
    let write_by_own_mount = || {
        let proc = mount("proc")?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&proc, &path, flags, Mode::empty()) {
            Ok(file) => File::from(file).write_all(value.as_bytes()),
            Err(_) if !exists(&proc, &format!("sys/net/{family}")) => Ok(()),
            Err(error) => Err(error.into()),
        }
    };

    write_by_own_mount().map_err(|own: io::Error| {
        RequestError::unsupported(format!(
            "cannot write /proc/{path}: {error}; nor by another mount of proc: {own}; in a \
             container, start the container with `--security-opt systempaths=unconfined` (Docker) or \
             `--security-opt unmask=ALL` (Podman)"
        ))
    })
}

fn exists(directory: &OwnedFd, path: &str) -> bool {
    rustix::fs::statat(directory, path, rustix::fs::AtFlags::empty()).is_ok()
}

/// Opens [`TUN`], or a device file of our own where it is missing.
pub(crate) fn open_tun() -> anyhow::Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN)
    };
    let opened = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            open_own_tun().map_err(|own| (own, "is missing"))
        }
        opened => opened.map_err(|error| (error, "cannot be opened")),
    };

    opened.map_err(|(error, what)| match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => anyhow::anyhow!(
            "the kernel has no TUN devices: {error}; load the module with `modprobe tun`"
        ),
        _ => anyhow::anyhow!(
            "{TUN} {what}: {error}; in a container, start the container with `--device {TUN}`"
        ),
    })
}

fn open_own_tun() -> io::Result<File> {
    let devices = mount("tmpfs")?;
    let (major, minor) = TUN_NUMBERS;
    let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
    mknodat(&devices, "tun", kind, mode, makedev(major, minor))?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;

    Ok(openat(&devices, "tun", flags, Mode::empty())?.into())
}

/// Mounts a new file system of this kind, without a path.
fn mount(kind: &str) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;

    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_that_are_missing_are_named() {
        let status = |set| format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\n");

        let all: [&str; 0] = [];
        assert_eq!(missing_capabilities(&status("000001ffffffffff")), all);
        // What Docker gives by default.
        assert_eq!(
            missing_capabilities(&status("00000000a80425fb")),
            ["NET_ADMIN", "SYS_ADMIN"]
        );
        assert_eq!(
            missing_capabilities(&status("0000000000001000")),
            ["SYS_ADMIN"]
        );
    }
}

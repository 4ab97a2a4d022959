//! Removal of the cluster, whatever state it is in.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Layout, lock, netns, node, process};
use crate::run::{self, Wait};

pub(crate) fn down() -> Result<()> {
    let _lock = lock()?;
    let layout = Layout::new();
    let ran = layout.dir.exists() || !netns::existing()?.is_empty();
    remove_all(&layout)?;
    println!(
        "{}",
        if ran {
            "the cluster is gone"
        } else {
            "no cluster was up"
        }
    );
    Ok(())
}

pub(super) fn remove_all(layout: &Layout) -> Result<()> {
    let shims = shim_sockets(&layout.dir);
    process::end_all()?;
    unmount_below(&layout.dir)?;
    netns::remove()?;
    node::remove_control_groups()?;
    remove_folder(&layout.dir)?;
    remove_leftovers(&layout.dir, &shims);
    Ok(())
}

/// Unmounts everything below `folder`: file systems and network namespaces of pods, volumes.
fn unmount_below(folder: &Path) -> Result<()> {
    Wait {
        what: "the unmounting of what the cluster mounted",
        within: Duration::from_secs(20),
        log: None,
    }
    .until(|| {
        let mut mounted = mounts_below(folder)?;
        if mounted.is_empty() {
            return Ok(());
        }
        mounted.sort();
        for mount in mounted.iter().rev() {
            // It may be gone with another; the next poll tells.
            let _ = run::output(Command::new("umount").arg("-l").arg(mount));
        }
        bail!("{} mounts are left", mounted.len())
    })
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(folder))
        .collect())
}

fn remove_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if folder.components().count() < 3 {
        bail!("{} is no folder of a test cluster", folder.display());
    }
    // A shim that was just killed may still leave a file behind.
    Wait {
        what: "the removal of the cluster's files",
        within: Duration::from_secs(10),
        log: None,
    }
    .until(|| fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display())))
}

/// Removes files of the programs outside our folder, whose paths are fixed.
fn remove_leftovers(folder: &Path, shims: &[PathBuf]) {
    let prefix = format!("{}pods", netns::PREFIX);
    let results = entries(Path::new("/var/lib/cni/results"));
    let containers: Vec<String> = results
        .iter()
        .filter_map(|result| result.file_name()?.to_str())
        .filter(|name| name.starts_with(&prefix))
        .filter_map(|name| name.rsplit('-').nth(1).map(str::to_owned))
        .collect();
    for result in results {
        let name = result.to_string_lossy();
        if containers.iter().any(|container| name.contains(container)) {
            let _ = fs::remove_file(&result);
        }
    }
    for entry in entries(Path::new("/var/log/containers")) {
        if fs::read_link(&entry).is_ok_and(|target| target.starts_with(folder)) {
            let _ = fs::remove_file(&entry);
        }
    }
    for socket in shims {
        let _ = fs::remove_file(socket);
    }
    // Folders of another kubelet are not empty.
    for folder in Path::new(node::DEVICES).ancestors().take(2) {
        let _ = fs::remove_dir(folder);
    }
}

/// The sockets of containerd's shims, as each bundle names its own: all containerds share their
/// folder.
fn shim_sockets(folder: &Path) -> Vec<PathBuf> {
    entries(folder)
        .into_iter()
        .flat_map(|node| entries(&node.join("state/io.containerd.runtime.v2.task/k8s.io")))
        .filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().map(|entry| entry.path()).collect(),
    )
}

//! The cluster's programs: started apart from the caller's terminal, found again without a list.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{self, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Layout, netns};
use crate::run::{self, Wait};

/// A program that runs in a network namespace until the cluster goes down.
pub(crate) struct Daemon<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) command: Vec<String>,
}

impl Daemon<'_> {
    pub(crate) fn log(&self, layout: &Layout) -> PathBuf {
        layout.logs().join(format!("{}.log", self.name))
    }

    /// Returns the program's process id.
    pub(crate) fn start(&self, layout: &Layout) -> Result<u32> {
        let log = run::create(&self.log(layout))?;
        let child = Command::new("nsenter")
            .arg(netns::entry(self.namespace))
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(&layout.dir)
            // A terminal's interrupt is for xtask, not for the cluster.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        Ok(child.id())
    }
}

/// Ends every process in the cluster's network namespaces or control groups.
///
/// Keeps no list of process ids: this works after a crash, and cannot hit a process with a reused
/// id.
pub(crate) fn end_all() -> Result<()> {
    Wait {
        what: "the end of the cluster's processes",
        within: Duration::from_secs(20),
        log: None,
    }
    .until(|| {
        let living = members()?;
        if living.is_empty() {
            return Ok(());
        }
        let mut kill = Command::new("kill");
        kill.arg("-9");
        kill.args(living.iter().map(u32::to_string));
        // kill fails for a process that has ended meanwhile; the next poll tells.
        let _ = kill.stdout(Stdio::null()).stderr(Stdio::null()).status();
        bail!("still there: {living:?}")
    })
}

fn members() -> Result<BTreeSet<u32>> {
    let namespaces: BTreeSet<u64> = netns::existing()?
        .iter()
        .filter_map(|name| fs::metadata(netns::path(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let own = process::id();

    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if pid == own {
            continue;
        }
        let in_namespace = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|metadata| namespaces.contains(&metadata.ino()));
        let in_group = fs::read_to_string(entry.path().join("cgroup"))
            .is_ok_and(|text| text.contains(&format!(":/{}node", netns::PREFIX)));
        if (in_namespace || in_group) && !is_dead(&entry.path()) {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// Returns whether the process is a zombie.
fn is_dead(process: &std::path::Path) -> bool {
    fs::read_to_string(process.join("stat")).map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
}

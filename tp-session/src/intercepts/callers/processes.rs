//! Processes, as `/proc` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, iter,
    path::PathBuf,
};

/// A process, which no later one is mistaken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct ProcessId {
    pub(super) pid: u32,
    /// In clock ticks after boot.
    started: u64,
}

/// No process has more ancestors that matter.
const MAX_ANCESTORS: usize = 256;

/// All processes of this PID namespace at one moment.
pub(super) struct Processes(BTreeMap<u32, Entry>);

struct Entry {
    parent: u32,
    started: u64,
}

impl Processes {
    pub(super) fn read() -> io::Result<Self> {
        let entries = fs::read_dir("/proc")?.filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, Entry::read(pid)?))
        });

        Ok(Self(entries.collect()))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = ProcessId> {
        self.0.iter().map(|(pid, entry)| ProcessId {
            pid: *pid,
            started: entry.started,
        })
    }

    pub(super) fn has(&self, process: ProcessId) -> bool {
        let entry = self.0.get(&process.pid);

        entry.is_some_and(|entry| entry.started == process.started)
    }

    /// Those of `roots`, and all that descend from them.
    pub(super) fn trees(&self, roots: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (pid, entry) in &self.0 {
            children.entry(entry.parent).or_default().push(*pid);
        }
        let mut found = BTreeSet::new();
        let mut open: Vec<u32> = roots.into_iter().collect();
        while let Some(pid) = open.pop() {
            if found.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }

        found
    }
}

impl Entry {
    /// `None` if it has ended meanwhile.
    fn read(pid: u32) -> Option<Self> {
        parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// The processes that `pid` descends from, as far as there are some left.
pub(in super::super) fn ancestors(pid: u32) -> Vec<ProcessId> {
    let parent = |pid| Some(Entry::read(pid)?.parent);
    let pids = iter::successors(parent(pid), |pid| parent(*pid));
    let ids = pids.map_while(|pid| {
        let started = Entry::read(pid)?.started;
        Some(ProcessId { pid, started })
    });

    ids.take(MAX_ANCESTORS).collect()
}

/// Process id and name are followed by the state, the parent, and others (proc_pid_stat(5)).
fn parse(stat: &str) -> Option<Entry> {
    // A name may have any characters.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(1);

    Some(Entry {
        parent: fields.next()?.parse().ok()?,
        started: fields.nth(17)?.parse().ok()?,
    })
}

/// Returns whether the process has one of these sockets open, as far as its descriptors are shown.
pub(super) fn holds(pid: u32, sockets: &[u32]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let targets = descriptors.filter_map(|it| fs::read_link(it.ok()?.path()).ok());
    let mut inodes = targets.filter_map(inode);

    inodes.any(|inode| sockets.contains(&inode))
}

/// `socket:[4711]`
fn inode(target: PathBuf) -> Option<u32> {
    let inode = target.to_str()?.strip_prefix("socket:[")?;

    inode.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_hides_neither_parent_nor_start() {
        let zeros = "0 ".repeat(17);
        let entry = parse(&format!("7 (a) S 99 (b)) S 42 {zeros}4711 0\n")).unwrap();

        assert_eq!((entry.parent, entry.started), (42, 4711));
        assert!(parse("7 (a) S").is_none());
    }

    #[test]
    fn a_tree_has_all_that_descend() {
        let entry = |(pid, parent)| (pid, Entry { parent, started: 1 });
        let all = [(1, 0), (2, 1), (3, 2), (4, 3), (5, 1), (6, 5)].map(entry);
        let processes = Processes(all.into());

        assert_eq!(processes.trees([2]), BTreeSet::from([2, 3, 4]));
        assert_eq!(processes.trees([4, 5]), BTreeSet::from([4, 5, 6]));
        assert!(processes.has(ProcessId { pid: 2, started: 1 }));
        assert!(!processes.has(ProcessId { pid: 2, started: 9 }));
    }
}

//! Finds the processes of a pod by the paths of their cgroups. A process is known by its directory in
//! `/proc`, held open: a later process with the same number has another one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::PathBuf,
};

use anyhow::Context as _;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::getppid,
};
use tp_agent_api::MAX_ENVIRON;

use crate::{
    cgroup::{ContainerId, PodCgroups, PodUid, path_in},
    netns::{FileId, PodNetns},
    pod_error::PodError,
};

/// Paths of cgroups have at most 4096 bytes, and there are some fourteen lines.
const MAX_SMALL_FILE: u64 = 128 * 1024;

pub(crate) struct Processes {
    proc: PathBuf,
    pods: PodCgroups,
    /// The namespaces that are no pod's: the node's, and our own.
    refused: Vec<FileId>,
}

/// The first process of a container that still runs.
struct Process {
    dir: OwnedFd,
    /// In ticks since the machine started.
    started: u64,
}

impl Processes {
    /// `cgroups` is the directory of the kubelet's pods, or a path below it; without it, our own
    /// process's path says where it is.
    pub(crate) fn new(proc: PathBuf, cgroups: Option<&str>) -> anyhow::Result<Self> {
        let own = fs::read_to_string(proc.join("self/cgroup")).context("cannot read our cgroup")?;
        let own = path_in(&own).unwrap_or_default();
        let pods = PodCgroups::above(cgroups.unwrap_or(own)).with_context(|| {
            format!(
                "cannot tell from the cgroup {own:?} where the kubelet keeps its pods: run tp-agentd \
                 as a pod, or name the directory with --pod-cgroups"
            )
        })?;
        let id = |process: String| {
            let path = proc.join(process).join("ns/net");
            let file = File::open(&path).with_context(|| {
                format!(
                    "cannot open {}: tp-agentd needs hostPID and CAP_SYS_PTRACE",
                    path.display()
                )
            })?;
            anyhow::Ok(FileId::of(file)?)
        };
        // Our parent is of the container runtime. Process 1 may be somebody that nobody may look at,
        // where the node is itself a container.
        let parent = getppid().map(|pid| id(pid.as_raw_nonzero().to_string()));
        let nodes = [Some(id("1".to_owned())), parent];
        let (known, unknown): (Vec<_>, Vec<_>) =
            nodes.into_iter().flatten().partition(Result::is_ok);
        if let (true, Some(Err(error))) = (known.is_empty(), unknown.into_iter().next()) {
            return Err(error);
        }
        let mut refused: Vec<FileId> = known.into_iter().flatten().collect();
        refused.push(id("self".to_owned())?);

        Ok(Self {
            proc,
            pods,
            refused,
        })
    }

    /// Opens the network namespace of a pod, of which these containers run.
    pub(crate) fn netns_of(
        &self,
        uid: &PodUid,
        containers: &[ContainerId],
    ) -> Result<PodNetns, PodError> {
        let processes = self.first_processes(uid, containers)?;
        let mut found: Option<PodNetns> = None;
        for (container, process) in &processes {
            let opened = process.open("ns/net").map_err(|error| gone(&error))?;
            let netns = PodNetns::new(opened)?;
            // Read after the namespace was opened: it was of a process of this very container.
            if self.container_of(process, uid).as_ref() != Some(container) {
                return Err(PodError::not_found("the pod ended while it was looked for"));
            }
            if self.refused.contains(&netns.id()) {
                return Err(PodError::unsupported(
                    "the pod uses the network of its node (hostNetwork), whose ports are not \
                     redirected: intercept a workload with a network of its own",
                ));
            }
            if found.as_ref().is_some_and(|it| it.id() != netns.id()) {
                return Err(PodError::unsupported(
                    "the containers of the pod are in different network namespaces, as those of \
                     sandboxed runtimes are: such a pod is not redirected",
                ));
            }
            found = Some(netns);
        }

        found.ok_or_else(|| {
            PodError::not_found(
                "no process of the pod runs on this node: is the pod Ready, and does its runtime run \
                 it as processes of the node?",
            )
        })
    }

    /// The environment that the first process of a container was started with.
    pub(crate) fn environ_of(
        &self,
        uid: &PodUid,
        container: &ContainerId,
    ) -> Result<Vec<u8>, PodError> {
        let mut processes = self.first_processes(uid, std::slice::from_ref(container))?;
        let process = processes.remove(container).ok_or_else(|| {
            PodError::not_found("no process of the container runs on this node: has it ended?")
        })?;
        let mut environ = Vec::new();
        process
            .open("environ")
            .and_then(|fd| {
                File::from(fd)
                    .take(MAX_ENVIRON as u64 + 1)
                    .read_to_end(&mut environ)
            })
            .map_err(|error| gone(&error))?;
        if environ.len() > MAX_ENVIRON {
            return Err(PodError::unsupported(format!(
                "the environment of the container is larger than {MAX_ENVIRON} bytes"
            )));
        }
        if self.container_of(&process, uid).as_ref() != Some(container) {
            return Err(PodError::not_found(
                "the container ended while its environment was read",
            ));
        }

        Ok(environ)
    }

    /// Of each of these containers the process that was started first.
    fn first_processes(
        &self,
        uid: &PodUid,
        containers: &[ContainerId],
    ) -> Result<BTreeMap<ContainerId, Process>, PodError> {
        let mut found: BTreeMap<ContainerId, Process> = BTreeMap::new();
        let entries = fs::read_dir(&self.proc).context("cannot list the processes of the node")?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            if !is_process {
                continue;
            }
            // What fails here has ended.
            let Ok(process) = Process::open_at(&self.proc.join(name)) else {
                continue;
            };
            let Some(container) = self.container_of(&process, uid) else {
                continue;
            };
            let is_first = found
                .get(&container)
                .is_none_or(|it| it.started > process.started);
            if containers.contains(&container) && is_first {
                found.insert(container, process);
            }
        }

        Ok(found)
    }

    fn container_of(&self, process: &Process, uid: &PodUid) -> Option<ContainerId> {
        let cgroup = process.read("cgroup").ok()?;

        self.pods.container_of(path_in(&cgroup)?, uid)
    }
}

impl Process {
    fn open_at(path: &std::path::Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())?;
        let mut process = Self { dir, started: 0 };
        process.started = started(&process.read("stat")?)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;

        Ok(process)
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;

        Ok(openat(&self.dir, name, flags, Mode::empty())?)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        File::from(self.open(name)?)
            .take(MAX_SMALL_FILE)
            .read_to_string(&mut text)?;

        Ok(text)
    }
}

/// Field 22 of proc_pid_stat(5); the second one, in parentheses, may hold any character.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;

    fields.split(' ').nth(22 - 3)?.parse().ok()
}

fn gone(error: &io::Error) -> PodError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => PodError::unsupported(
            "tp-agentd may not look into the processes of the pod: it needs CAP_SYS_PTRACE",
        ),
        _ => PodError::not_found("the pod ended while it was looked for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_read_behind_its_name() {
        let fields: Vec<String> = (4..=30).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b (c) ) S {}\n", fields.join(" "));

        assert_eq!(started(&stat), Some(22));
        assert_eq!(started("7 (a"), None);
    }
}

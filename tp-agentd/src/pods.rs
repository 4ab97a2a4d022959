//! Finds the processes of a pod by the paths of their cgroups. A process is known by its directory in
//! `/proc`, held open: a later process with the same number has another one.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::getppid,
    thread::CapabilitySet,
};
use tp_agent_api::MAX_ENVIRON;

use crate::{
    cgroup::{ContainerId, PodCgroups, PodUid, path_in},
    netns::{FileId, PodNetns},
    networks::PodNetworks,
    pod_error::{PodError, has_ended, is_denied},
};

/// Paths of cgroups have at most 4096 bytes, and there are some fourteen lines.
const MAX_SMALL_FILE: u64 = 128 * 1024;
/// At a pod whose processes seem to be in several networks.
const LOOKS: u32 = 4;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) struct Processes {
    proc: PathBuf,
    pods: PodCgroups,
    /// The namespaces that are no pod's: the node's, and our own.
    refused: Vec<FileId>,
}

/// A process that runs, or waits.
struct Process {
    dir: OwnedFd,
    stat: Stat,
}

/// Of proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// It has ended, and its parent has not asked about it.
    is_dead: bool,
    /// In ticks since the machine started.
    started: u64,
    /// Bytes of its environment, as the kernel placed it; `None` if we may not know, or it has none at
    /// the moment.
    environ: Option<u64>,
}

/// What a process was started with.
pub(crate) struct StartEnviron {
    pub(crate) bytes: Vec<u8>,
    /// How many the kernel placed, if it tells.
    pub(crate) placed: Option<u64>,
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

    /// Opens the network namespace of a pod, of which these containers run, and which has these
    /// addresses. Containers may make further ones for their children, as a Docker daemon does.
    pub(crate) fn netns_of(
        &self,
        uid: &PodUid,
        containers: &[ContainerId],
        addresses: &[IpAddr],
    ) -> Result<PodNetns, PodError> {
        let mut networks = self.networks_of(uid, containers)?;
        for _ in 1..LOOKS {
            if networks.is_known(addresses)? {
                break;
            }
            // The runtime starts a process outside, and takes it in: for a container, or a probe.
            #[expect(
                clippy::disallowed_methods,
                reason = "nothing is notified when a process enters a namespace"
            )]
            thread::sleep(LOOK_INTERVAL);
            networks = self.networks_of(uid, containers)?;
        }
        if !networks.is_known(addresses)? {
            return Err(PodError::unsupported(
                "the containers of the pod are in different network namespaces, or not in one that has \
                 the addresses of the pod, as those of sandboxed runtimes are: such a pod is not \
                 redirected",
            ));
        }
        let Some(netns) = networks.into_first() else {
            return Err(PodError::not_found(
                "no process of the pod runs on this node: is the pod Ready, and does its runtime run \
                 it as processes of the node?",
            ));
        };
        if self.refused.contains(&netns.id()) {
            return Err(PodError::unsupported(
                "the pod uses the network of its node (hostNetwork), whose ports are not redirected: \
                 intercept a workload with a network of its own",
            ));
        }

        Ok(netns)
    }

    fn networks_of(
        &self,
        uid: &PodUid,
        containers: &[ContainerId],
    ) -> Result<PodNetworks, PodError> {
        let mut networks = PodNetworks::default();
        self.visit(uid, containers, |process| {
            let netns = PodNetns::new(process.open("ns/net")?)?;
            // Read after the namespace was opened: it was of a process of these very containers.
            if let Some(container) = self.container_of(process, uid, containers)? {
                networks.add(container, process.stat.started, netns);
            }
            Ok(())
        })?;

        Ok(networks)
    }

    /// The environment that the first process of a container was started with.
    pub(crate) fn environ_of(
        &self,
        uid: &PodUid,
        container: &ContainerId,
    ) -> Result<StartEnviron, PodError> {
        let containers = std::slice::from_ref(container);
        let mut first: Option<Process> = None;
        self.visit(uid, containers, |process| {
            let started = process.stat.started;
            if first.as_ref().is_none_or(|it| it.stat.started > started) {
                first = Some(process.again()?);
            }
            Ok(())
        })?;
        let process = first.ok_or_else(|| {
            PodError::not_found("no process of the container runs on this node: has it ended?")
        })?;
        let ended = || PodError::not_found("the container ended while its environment was read");
        let read = || -> io::Result<(StartEnviron, bool)> {
            let bytes = process.read("environ", MAX_ENVIRON as u64 + 1)?;
            let placed = process.stat()?.and_then(|stat| stat.environ);
            let is_same = self.is_of(&process, uid, containers)?;
            Ok((StartEnviron { bytes, placed }, is_same))
        };
        let (environ, is_same) = read().map_err(|error| match has_ended(&error) {
            true => ended(),
            false => PodError::step(
                "read the environment of the container",
                &error,
                CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH,
            ),
        })?;
        if !is_same {
            return Err(ended());
        }
        if environ.bytes.len() > MAX_ENVIRON {
            return Err(PodError::unsupported(format!(
                "the environment of the container is larger than {MAX_ENVIRON} bytes"
            )));
        }

        Ok(environ)
    }

    /// Shows all processes of these containers to `look`, and skips those that end meanwhile.
    fn visit(
        &self,
        uid: &PodUid,
        containers: &[ContainerId],
        mut look: impl FnMut(&Process) -> io::Result<()>,
    ) -> Result<(), PodError> {
        let failed = |error: &io::Error| {
            let what = "look into the processes of the node";
            PodError::step(what, error, CapabilitySet::SYS_PTRACE)
        };
        let (mut has_seen, mut denied) = (false, None);
        for entry in fs::read_dir(&self.proc).map_err(|error| failed(&error))? {
            let name = entry.map_err(|error| failed(&error))?.file_name();
            if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let mut is_ours = false;
            let looked =
                Process::open_at(&self.proc.join(name)).and_then(|process| match process {
                    Some(process) if self.is_of(&process, uid, containers)? => {
                        is_ours = true;
                        look(&process)
                    }
                    _ => Ok(()),
                });
            match looked {
                Ok(()) => has_seen |= is_ours,
                Err(error) if has_ended(&error) => {}
                // Somebody that nobody may look at, who need not be of the pod.
                Err(error) if is_denied(&error) && !is_ours => denied = Some(error),
                Err(error) => return Err(failed(&error)),
            }
        }

        denied
            .filter(|_| !has_seen)
            .map_or(Ok(()), |error| Err(failed(&error)))
    }

    fn is_of(
        &self,
        process: &Process,
        uid: &PodUid,
        containers: &[ContainerId],
    ) -> io::Result<bool> {
        Ok(self.container_of(process, uid, containers)?.is_some())
    }

    fn container_of(
        &self,
        process: &Process,
        uid: &PodUid,
        containers: &[ContainerId],
    ) -> io::Result<Option<ContainerId>> {
        let cgroup = process.read("cgroup", MAX_SMALL_FILE)?;
        // Names that are no text are of no kubelet.
        let cgroup = String::from_utf8_lossy(&cgroup);
        let container = path_in(&cgroup).and_then(|path| self.pods.container_of(path, uid));

        Ok(container.filter(|it| containers.contains(it)))
    }
}

impl Process {
    /// `None` if it has ended.
    fn open_at(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())?;
        let unknown = Stat {
            is_dead: false,
            started: 0,
            environ: None,
        };
        let process = Self { dir, stat: unknown };
        let stat = process.stat()?.filter(|stat| !stat.is_dead);

        Ok(stat.map(|stat| Self { stat, ..process }))
    }

    fn again(&self) -> io::Result<Self> {
        let dir = self.dir.try_clone()?;

        Ok(Self { dir, ..*self })
    }

    /// `None` if it is no line that we know.
    fn stat(&self) -> io::Result<Option<Stat>> {
        let stat = self.read("stat", MAX_SMALL_FILE)?;

        // The name may be no text.
        Ok(Stat::parse(&String::from_utf8_lossy(&stat)))
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;

        Ok(openat(&self.dir, name, flags, Mode::empty())?)
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::from(self.open(name)?)
            .take(most)
            .read_to_end(&mut bytes)?;

        Ok(bytes)
    }
}

impl Stat {
    /// The second field, in parentheses, may hold any character. Of a process that we may not look into
    /// the last ones are zero.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let environ = match (field(50), field(51)) {
            (Some(start @ 1..), Some(end)) => end.checked_sub(start),
            _ => None,
        };

        Some(Self {
            is_dead: matches!(fields.first()?, &"Z" | &"X" | &"x"),
            started: field(22)?,
            environ,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_process_is_read_behind_its_name() {
        let line = |state: &str, last: u64| {
            let fields: Vec<String> = (4..=last).map(|field| field.to_string()).collect();
            format!("7 (a) b (c) ) {state} {}\n", fields.join(" "))
        };
        let mut stat = Stat {
            is_dead: false,
            started: 22,
            environ: Some(1),
        };

        assert_eq!(Stat::parse(&line("S", 52)), Some(stat));
        stat.environ = None;
        assert_eq!(Stat::parse(&line("S", 30)), Some(stat));
        stat.is_dead = true;
        assert_eq!(Stat::parse(&line("Z", 30)), Some(stat));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(Stat::parse("7 (a) "), None);
    }
}

//! Whether the process that calls is of the handler of an intercept: what a handler calls is meant for
//! the original, or a proxy would call itself for ever.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tp_core::packet::FlowKey;
use tp_process::sync::lock;

use processes::Processes;
pub(super) use processes::{ProcessId, ancestors};

mod diag;
mod processes;

/// Who is not found by then may be the handler.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// Searches at once; others wait.
const PARALLEL: usize = 4;
/// For so long it is not looked again who holds a socket that listens.
const HOLDERS_LIFETIME: Duration = Duration::from_secs(1);

/// Where the handler of an intercepted port is found.
#[derive(Debug, Clone)]
pub(super) struct HandlerPlace {
    pub(super) listens_at: SocketAddr,
    /// The `tp intercept` that runs the handler as its command.
    pub(super) command_of: Option<u32>,
    /// The processes that the `tp intercept` descends from.
    pub(super) asked_from: Arc<[ProcessId]>,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundCaller {
    Handler,
    Other,
    /// It may be the handler, which would call itself for ever.
    Unknown,
    /// Nobody's calls can be told apart here.
    Untold,
}

/// Finds the processes that call.
pub(super) struct Callers {
    slots: Arc<Semaphore>,
    seen: Arc<SeenProcesses>,
    /// The log says that callers cannot be told apart.
    is_told: AtomicBool,
}

/// What searches have in common.
#[derive(Default)]
struct SeenProcesses {
    /// The newest, and when it was begun.
    newest: Mutex<Option<(Instant, Arc<Processes>)>>,
    holders: Holders,
}

/// The processes that held listening sockets a moment ago, by the inodes of these.
#[derive(Default)]
struct Holders(Mutex<BTreeMap<Vec<u32>, KnownHolders>>);

struct KnownHolders {
    found: Instant,
    processes: Vec<ProcessId>,
}

impl Default for Callers {
    fn default() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(PARALLEL)),
            seen: Arc::default(),
            is_told: AtomicBool::new(false),
        }
    }
}

impl Callers {
    /// The handler is every process of this user that holds the socket that listens, is the command, or
    /// descends from one of these. Of a holder from which the session or its `tp` descends as well, such
    /// as a service manager that passes the socket on, or an editor, what descends says nothing.
    pub(super) async fn find(&self, handler: HandlerPlace, flow: FlowKey) -> FoundCaller {
        let called = Instant::now();
        let (slots, seen) = (Arc::clone(&self.slots), Arc::clone(&self.seen));
        let found = async {
            let permit = slots.acquire_owned().await.map_err(io::Error::other)?;
            let found = spawn_blocking(move || {
                let _permit = permit;
                is_handler(handler, flow, called, &seen)
            });
            found.await.map_err(io::Error::other)?
        };
        match timeout(FIND_TIMEOUT, found).await {
            Ok(Ok(true)) => FoundCaller::Handler,
            Ok(Ok(false)) => FoundCaller::Other,
            // It has gone, or is in another network namespace.
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => FoundCaller::Other,
            // It stays so: a session that may not ask the kernel, or a kernel that does not answer.
            Ok(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                ) =>
            {
                if !self.is_told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "Nobody can be told apart who calls an intercepted service");
                }
                FoundCaller::Untold
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "Caller of an intercepted service is not known");
                FoundCaller::Unknown
            }
            Err(_) => {
                tracing::debug!("Caller of an intercepted service is not found in time");
                FoundCaller::Unknown
            }
        }
    }

    /// Whose searches fail.
    #[cfg(test)]
    pub(super) fn failing() -> Self {
        let callers = Self::default();
        callers.slots.close();

        callers
    }
}

fn is_handler(
    handler: HandlerPlace,
    flow: FlowKey,
    called: Instant,
    seen: &SeenProcesses,
) -> io::Result<bool> {
    let socket = diag::socket_of(flow)?;
    if socket.uid != geteuid().as_raw() {
        return Ok(false);
    }
    let inode = [socket.inode];
    let calls = |pid: &u32| processes::holds(*pid, &inode);
    let processes = seen.after(called).map_err(io::Error::other)?;
    let of_command = processes.trees(handler.command_of);
    if of_command.iter().any(calls) {
        return Ok(true);
    }
    let listening = diag::listening(handler.listens_at).map_err(io::Error::other)?;
    let mut around = ancestors(process::id());
    around.extend(handler.asked_from.iter());
    let holders = seen.holders.of(listening, &processes, |holders| {
        // It may have passed the socket on meanwhile.
        holders.found >= called || !holders.processes.iter().any(|it| around.contains(it))
    });
    let (alone, roots): (Vec<ProcessId>, Vec<ProcessId>) =
        holders.iter().partition(|it| around.contains(it));
    let mut trees = processes.trees(roots.iter().map(|it| it.pid));
    trees.extend(alone.iter().map(|it| it.pid));

    Ok(trees.difference(&of_command).any(calls))
}

impl SeenProcesses {
    /// The processes at a moment after `called`: who called then is among them. Searches that wait for
    /// them share them.
    fn after(&self, called: Instant) -> io::Result<Arc<Processes>> {
        let mut newest = lock(&self.newest);
        if let Some((begun, processes)) = &*newest
            && *begun >= called
        {
            return Ok(Arc::clone(processes));
        }
        let begun = Instant::now();
        let processes = Arc::new(Processes::read()?);
        *newest = Some((begun, Arc::clone(&processes)));

        Ok(processes)
    }
}

impl Holders {
    fn of(
        &self,
        listening: Vec<u32>,
        processes: &Processes,
        is_valid: impl Fn(&KnownHolders) -> bool,
    ) -> Vec<ProcessId> {
        if listening.is_empty() {
            return Vec::new();
        }
        let mut known = lock(&self.0);
        known.retain(|_, holders| holders.found.elapsed() < HOLDERS_LIFETIME);
        if let Some(holders) = known.get(&listening).filter(|it| is_valid(it)) {
            let live = holders.processes.iter().copied();
            return live.filter(|it| processes.has(*it)).collect();
        }
        // Whoever comes meanwhile waits, and finds it known.
        let found = Instant::now();
        let all = processes.all();
        let holders: Vec<ProcessId> = all
            .filter(|it| processes::holds(it.pid, &listening))
            .collect();
        let holding = KnownHolders {
            found,
            processes: holders.clone(),
        };
        known.insert(listening, holding);

        holders
    }
}

#[cfg(test)]
mod tests;

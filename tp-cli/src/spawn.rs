//! Starts the root daemon and this user's session where they are missing.
//!
//! A start succeeds when the socket answers, and fails when the process ends first or a timeout
//! passes.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, IsTerminal},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::StatusRequest,
};

use crate::{
    client::{self, Session},
    files,
    progress::{Progress, note},
    root_daemon::{self, Answer, Running},
};

/// Until a started program answers.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Until a root daemon without sessions ends.
const END_TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Standard error of the programs; the session also has a log of its own.
const ROOT_LOG: &str = "root.log";
const SESSION_LOG: &str = "session-start.log";
const MAX_QUOTED_CHARS: usize = 400;

/// Programs that this command started and that may not answer yet. Interrupting the command ends
/// them.
#[derive(Debug, Default)]
pub(crate) struct Started(Vec<Child>);

impl Started {
    /// Called when all answer: without users they end by themselves.
    fn release(&mut self) {
        self.0.clear();
    }

    /// Ends all of them and waits for it.
    pub(crate) async fn end(&mut self) {
        let ended = async {
            for child in &mut self.0 {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                while let Ok(None) = child.try_wait() {
                    // Repeated: a program that has just started may ignore the first signal.
                    if let Some(pid) = pid {
                        let _ = kill_process(pid, Signal::TERM);
                    }
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        };
        if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() {
            for child in &mut self.0 {
                let _ = child.kill();
            }
        }
        self.0.clear();
    }
}

/// Finds or starts a root daemon that serves this user and keeps running.
pub(crate) async fn root_daemon(
    progress: &mut Progress,
    started: &mut Started,
) -> anyhow::Result<Running> {
    if let Some(running) = running().await? {
        return Ok(running);
    }
    progress.step("starting the root daemon");
    let log = tp_ipc::make_state_dir()
        .context("cannot make the state directory")?
        .join(ROOT_LOG);
    let is_child = rustix::process::geteuid().is_root();
    if is_child {
        started.0.push(start_as_root(&log)?);
    } else {
        start_through_sudo(&log, progress)?;
    }
    let running = root_daemon_answers(started.0.last_mut().filter(|_| is_child), &log).await?;
    started.release();

    Ok(running)
}

/// The daemon ends with its last session, as one started through sudo does.
fn start_as_root(log: &Path) -> anyhow::Result<Child> {
    let program = files::daemon()?;

    Command::new(&program)
        .args(["root", "--sudo"])
        .env("SUDO_UID", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(new_log(log)?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn start_through_sudo(log: &Path, progress: &mut Progress) -> anyhow::Result<()> {
    let program = files::daemon_for_root()?;
    let start = || -> anyhow::Result<bool> {
        let socket = std::env::var_os(tp_root_api::SOCKET_VARIABLE);
        let status = sudo_daemon(&program, socket.as_deref())
            .process_group(0)
            .stderr(new_log(log)?)
            .status()
            .map_err(|error| without_sudo(&program, &error))?;
        Ok(status.success())
    };
    if start()? {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(refused(&program, &last_line(log)).into());
    }

    progress.clear();
    note("tp needs root once, to start its root daemon, which attaches the eBPF programs:");
    note(&format!("  sudo {} root --sudo", program.display()));
    let allowed = Command::new("sudo")
        .arg("-v")
        .status()
        .map_err(|error| without_sudo(&program, &error))?;
    progress.step("starting the root daemon");
    if !allowed.success() || !start()? {
        return Err(refused(&program, &last_line(log)).into());
    }

    Ok(())
}

/// Starts a session.
pub(crate) async fn session(
    progress: &mut Progress,
    started: &mut Started,
) -> anyhow::Result<Session> {
    progress.step("starting the session");
    let program = files::session()?;
    let words = tp_ipc::make_state_dir()
        .context("cannot make the state directory")?
        .join(SESSION_LOG);
    let child = Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(new_log(&words)?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    started.0.push(child);
    let child = started.0.last_mut().context("a session was started")?;

    let answers = async {
        loop {
            if let Some(mut session) = client::find().await?
                && session.status(StatusRequest {}).await.is_ok()
            {
                return Ok(session);
            }
            if let Some(status) = child.try_wait().context("cannot watch the session")? {
                // The user may have started one by hand.
                return match client::find().await? {
                    Some(session) => Ok(session),
                    None => Err(ended("the session", status, &words).into()),
                };
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let session: anyhow::Result<Session> = tokio::time::timeout(START_TIMEOUT, answers)
        .await
        .unwrap_or_else(|_| Err(not_answering("the session", &words).into()));
    let session = session?;
    started.release();

    Ok(session)
}

async fn root_daemon_answers(mut child: Option<&mut Child>, log: &Path) -> anyhow::Result<Running> {
    let answers = async {
        loop {
            if let Some(running) = running().await? {
                return Ok(running);
            }
            if let Some(child) = &mut child
                && let Some(status) = child.try_wait().context("cannot watch the root daemon")?
            {
                // Another `tp` may have been faster.
                return match running().await? {
                    Some(running) => Ok(running),
                    None => Err(ended("the root daemon", status, log).into()),
                };
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };

    tokio::time::timeout(START_TIMEOUT, answers)
        .await
        .unwrap_or_else(|_| Err(not_answering("the root daemon", log).into()))
}

/// The running root daemon; waits if it is ending.
async fn running() -> Result<Option<Running>, Fault> {
    let socket = tp_root_api::socket_path();
    let socket = socket.display();
    let end = Instant::now() + END_TIMEOUT;
    loop {
        let (kind, message) = match root_daemon::hello_to_connect() {
            Answer::Running(running) => return Ok(Some(running)),
            Answer::Absent => return Ok(None),
            Answer::Ending if Instant::now() < end => {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            Answer::Ending => (
                FaultKind::TemporaryFailure,
                format!("the root daemon at {socket} is ending and does not end: try again"),
            ),
            Answer::Denied(reason) => (
                FaultKind::NoPermission,
                format!("the root daemon at {socket} refuses this user: {reason}"),
            ),
            Answer::Broken(reason) => (
                FaultKind::Unavailable,
                format!("the root daemon at {socket} is unusable: {reason}"),
            ),
        };
        return Err(Fault::new(kind, message));
    }
}

/// Starts the daemon if that needs no password. The daemon detaches itself: not every sudo has
/// `-b`, and some kill their children with their own terminal.
fn sudo_daemon(program: &Path, socket: Option<&OsStr>) -> Command {
    let mut command = Command::new("sudo");
    command
        .args(["-n", "--"])
        .arg(program)
        .args(["root", "--sudo", "--detach"]);
    // sudo empties the environment.
    if let Some(socket) = socket {
        command.arg("--socket").arg(socket);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());

    command
}

fn without_sudo(program: &Path, error: &io::Error) -> Fault {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "sudo is not installed".to_owned(),
        _ => format!("sudo cannot be run: {error}"),
    };

    refused(program, &why)
}

fn refused(program: &Path, why: &str) -> Fault {
    let message = format!(
        "the root daemon is not running and could not be started: {why}; run `sudo {} install` \
         once, or `tp connect` on a terminal where sudo can ask for a password",
        program.display()
    );

    Fault::new(FaultKind::Unavailable, message)
}

fn ended(who: &str, status: ExitStatus, words: &Path) -> Fault {
    let words = last_line(words);
    let message = match words.is_empty() {
        true => format!("{who} ended while starting ({status})"),
        false => format!("{who} ended while starting: {words}"),
    };

    Fault::new(FaultKind::Unavailable, message)
}

fn not_answering(who: &str, words: &Path) -> Fault {
    let message = format!(
        "{who} was started and does not answer after {} s: see {}",
        START_TIMEOUT.as_secs(),
        words.parent().unwrap_or(words).display()
    );

    Fault::new(FaultKind::Unavailable, message)
}

/// Opens a new log and keeps the previous one beside it. The mode allows the program to truncate it
/// when it grows.
fn new_log(path: &Path) -> anyhow::Result<File> {
    // Fails before the first start.
    let _ = std::fs::rename(path, path.with_extension("log.1"));

    File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The last line of a program's log, at most `MAX_QUOTED_CHARS` long.
fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    let line = ["tp-daemon: ", "tp-session: "]
        .iter()
        .find_map(|name| line.strip_prefix(name))
        .unwrap_or(line);

    line.chars().take(MAX_QUOTED_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn the_last_words_are_the_last_line_that_says_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        std::fs::write(&path, "first\ntp-daemon: cannot load the programs\n\n").unwrap();

        assert_eq!(last_line(&path), "cannot load the programs");
        assert_eq!(last_line(&dir.path().join("absent")), "");
    }

    #[test]
    fn sudo_gets_a_socket_that_it_would_not_inherit() {
        let program = Path::new("/usr/local/bin/tp-daemon");
        let args = |socket| -> Vec<OsString> {
            let command = sudo_daemon(program, socket);
            command.get_args().map(OsStr::to_owned).collect()
        };
        let usual = [
            "-n",
            "--",
            "/usr/local/bin/tp-daemon",
            "root",
            "--sudo",
            "--detach",
        ];

        assert_eq!(args(None), usual);
        let other = args(Some(OsStr::new("/run/other.sock")));
        assert_eq!(other[..6], usual);
        assert_eq!(other[6..], ["--socket", "/run/other.sock"]);
    }
}

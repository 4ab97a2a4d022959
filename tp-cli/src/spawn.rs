//! Starts what is missing: the root daemon, and this user's session.
//!
//! A start is done when the socket answers, and has failed when the process ends before or the
//! bound passes.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tp_proto::{
    fault::{Fault, FaultKind},
    local::StatusRequest,
};

use crate::{
    client::{self, SessionClient},
    files,
    progress::{Progress, note},
    root_daemon::{self, Answer},
};

/// Longest wait for a program that was started.
const START: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(5);
/// How much of a dying program's last words is quoted.
const LAST_WORDS: usize = 400;

/// Sees to it that a root daemon answers that serves this user.
pub(crate) async fn root_daemon(progress: &mut Progress) -> anyhow::Result<()> {
    if is_answering()? {
        return Ok(());
    }
    progress.step("starting the root daemon");
    let words = files::make_state_dir()
        .context("cannot make the state directory")?
        .join("root-start.log");

    if rustix::process::geteuid().is_root() {
        let program = files::daemon()?;
        let mut command = Command::new(&program);
        let child = command
            .args(["root", "--sudo"])
            .env_remove("SUDO_UID")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(words_file(&words)?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        return root_daemon_answers(Some(child), &words).await;
    }

    let program = files::daemon_for_root()?;
    let status = sudo(&program, Ask::Never)
        .stderr(words_file(&words)?)
        .status()
        .map_err(|error| without_sudo(&program, &error))?;
    if !status.success() {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(refused(&program, &last_words(&words)).into());
        }
        progress.clear();
        note("tp needs root once, to start its root daemon, which attaches the eBPF programs.");
        note(&format!(
            "Starting it with: sudo {} root --sudo",
            program.display()
        ));
        let status = sudo(&program, Ask::Terminal)
            .status()
            .map_err(|error| without_sudo(&program, &error))?;
        if !status.success() {
            return Err(refused(&program, "sudo was refused").into());
        }
        progress.step("starting the root daemon");
    }

    root_daemon_answers(None, &words).await
}

/// A client of a session that was started here.
pub(crate) async fn session(progress: &mut Progress) -> anyhow::Result<SessionClient> {
    progress.step("starting the session");
    let program = files::daemon()?;
    let words = files::make_state_dir()
        .context("cannot make the state directory")?
        .join("session-start.log");
    let mut child = Command::new(&program)
        .arg("session")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words_file(&words)?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;

    let answers = async {
        loop {
            if let Some(mut session) = client::find().await?
                && session.status(StatusRequest {}).await.is_ok()
            {
                return Ok(session);
            }
            if let Some(status) = child.try_wait().context("cannot watch the session")? {
                // Another `tp` may have been faster.
                return match client::find().await? {
                    Some(session) => Ok(session),
                    None => Err(ended("the session", status, &words).into()),
                };
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(START, answers)
        .await
        .unwrap_or_else(|_| Err(not_answering("the session", &words).into()))
}

async fn root_daemon_answers(mut child: Option<Child>, words: &Path) -> anyhow::Result<()> {
    let answers = async {
        loop {
            if is_answering()? {
                return Ok(());
            }
            if let Some(child) = &mut child
                && let Some(status) = child.try_wait().context("cannot watch the root daemon")?
            {
                // Another `tp` may have been faster.
                return match is_answering()? {
                    true => Ok(()),
                    false => Err(ended("the root daemon", status, words).into()),
                };
            }
            tokio::time::sleep(POLL).await;
        }
    };

    tokio::time::timeout(START, answers)
        .await
        .unwrap_or_else(|_| Err(not_answering("the root daemon", words).into()))
}

fn is_answering() -> Result<bool, Fault> {
    let socket = root_daemon::socket_path();
    match root_daemon::hello() {
        Answer::Running { .. } => Ok(true),
        Answer::Absent => Ok(false),
        Answer::Denied(reason) => Err(Fault::new(
            FaultKind::NoPermission,
            format!(
                "the root daemon at {} does not serve this user: {reason}; `sudo usermod -aG tp \
                 $USER` and a new login change that",
                socket.display()
            ),
        )),
        Answer::Broken(reason) => Err(Fault::new(
            FaultKind::Unavailable,
            format!(
                "the root daemon at {} is unusable: {reason}",
                socket.display()
            ),
        )),
    }
}

#[derive(Clone, Copy)]
enum Ask {
    Never,
    Terminal,
}

/// Authenticates in the foreground, then leaves the daemon in the background.
fn sudo(program: &Path, ask: Ask) -> Command {
    let mut command = Command::new("sudo");
    if matches!(ask, Ask::Never) {
        command.arg("-n").stdin(Stdio::null());
    }
    command
        .args(["-b", "--"])
        .arg(program)
        .args(["root", "--sudo"]);
    // sudo empties the environment.
    if let Some(socket) = std::env::var_os("TP_ROOT_SOCKET") {
        command.arg("--socket").arg(socket);
    }
    command.stdout(Stdio::null());

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
    let words = last_words(words);
    let message = match words.is_empty() {
        true => format!("{who} ended while starting ({status})"),
        false => format!("{who} ended while starting: {words}"),
    };

    Fault::new(FaultKind::Unavailable, message)
}

fn not_answering(who: &str, words: &Path) -> Fault {
    let message = format!(
        "{who} was started and does not answer after {} s: see {}",
        START.as_secs(),
        words.parent().unwrap_or(words).display()
    );

    Fault::new(FaultKind::Unavailable, message)
}

fn words_file(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The last line that a program wrote before it ended.
fn last_words(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    let line = line.strip_prefix("tp-daemon: ").unwrap_or(line);

    line.chars().take(LAST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_last_line_that_says_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        std::fs::write(&path, "first\ntp-daemon: cannot load the programs\n\n").unwrap();

        assert_eq!(last_words(&path), "cannot load the programs");
        assert_eq!(last_words(&dir.path().join("absent")), "");
    }

    #[test]
    fn sudo_gets_a_socket_that_it_would_not_inherit() {
        let command = sudo(Path::new("/usr/local/bin/tp-daemon"), Ask::Never);
        let args: Vec<_> = command.get_args().collect();

        assert_eq!(
            args[..6],
            [
                "-n",
                "-b",
                "--",
                "/usr/local/bin/tp-daemon",
                "root",
                "--sudo"
            ]
        );
    }
}

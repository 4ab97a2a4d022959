//! Credential plugins: programs that a kubeconfig names to log in with, run as kubectl runs them
//! (`client.authentication.k8s.io`, client-go's `plugin/pkg/client/auth/exec`).
//!
//! kube runs them as well, but twice for one login, blocking, without a bound, in the environment of
//! this process, and again from a minute before the credential runs out (kube-client 5.0.0,
//! `client/auth/mod.rs`; <https://github.com/kube-rs/kube/issues/1088>).

use std::{
    fs::File,
    future::pending,
    io::{self, IsTerminal as _},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use kube::config::{ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, ChildStdout, Command},
    time::timeout,
};

use crate::{credential::Credential, shell::Shell};

/// For a plugin that can ask nobody.
const LIMIT: Duration = Duration::from_secs(60);
/// Of what a plugin prints. Tokens fit into a header, which servers bound to 1 MiB at most.
const OUTPUT_LIMIT: usize = 4 << 20;
/// Of what a plugin tells people.
const WORDS_LIMIT: usize = 4 << 10;
/// For the rest of it, once the plugin has failed.
const WORDS_WAIT: Duration = Duration::from_secs(1);
const INFORMATION: &str = "KUBERNETES_EXEC_INFO";

/// Where a plugin runs, which decides whom it can ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the command that somebody typed: it may use the terminal if there is one, and takes its
    /// time.
    Foreground,
    /// In a program that nobody sees.
    Background,
}

/// What became of a plugin.
struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
    /// The end of what it told people, unless they have seen it.
    words: Vec<u8>,
}

/// A plugin and what it is run with.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    config: ExecConfig,
    shell: Shell,
    place: Place,
}

/// Why a plugin gives no credential. What it printed, and its arguments, may be secrets: of a plugin
/// that failed only the last line of what it told people is in it.
#[derive(Debug, thiserror::Error)]
#[error("its credential plugin {command} {why}")]
pub(crate) struct Failure {
    command: String,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("cannot be run: {error}{}", advice(.hint))]
    NotStarted {
        error: io::Error,
        hint: Option<String>,
    },
    #[error("failed ({status}){}", .words.iter().map(|it| format!(": {it}")).collect::<String>())]
    Failed {
        status: ExitStatus,
        words: Option<String>,
    },
    #[error("printed no ExecCredential")]
    Unreadable,
    #[error("printed more than {} KiB", OUTPUT_LIMIT >> 10)]
    Long,
    #[error("did not end within {} s", LIMIT.as_secs())]
    Slow,
    #[error("was broken off")]
    BrokenOff,
    #[error("wants to ask somebody (interactiveMode: Always), and there is no terminal: {0}")]
    NoTerminal(&'static str),
}

fn advice(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("; {}", hint.trim().replace(char::is_control, " ")))
        .unwrap_or_default()
}

/// The version of the protocol where the kubeconfig names none.
const VERSION: &str = "client.authentication.k8s.io/v1";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Information<'a> {
    kind: &'a str,
    api_version: &'a str,
    spec: Spec<'a>,
}

#[derive(Debug, Serialize)]
struct Spec<'a> {
    interactive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a ExecAuthCluster>,
}

impl Plugin {
    pub(crate) fn new(config: ExecConfig, shell: Shell, place: Place) -> Self {
        Self {
            config,
            shell,
            place,
        }
    }

    /// Runs it once. Dropping the future ends what it started.
    pub(crate) async fn run(&self) -> Result<Credential, Failure> {
        self.try_run().await.map_err(|why| self.failure(why))
    }

    /// Why there is nothing of a run whose task is gone.
    pub(crate) fn broken_off(&self) -> Failure {
        self.failure(Why::BrokenOff)
    }

    fn failure(&self, why: Why) -> Failure {
        Failure {
            command: self.config.command.clone().unwrap_or_default(),
            why,
        }
    }

    async fn try_run(&self) -> Result<Credential, Why> {
        let is_interactive = self.is_interactive()?;
        let ended = match self.has_terminal() {
            true => self.end(is_interactive).await,
            false => timeout(LIMIT, self.end(is_interactive))
                .await
                .unwrap_or(Err(Why::Slow)),
        }?;
        if !ended.status.success() {
            return Err(Why::Failed {
                status: ended.status,
                words: (self.place == Place::Background).then(|| last_line(&ended.words)),
            });
        }
        if ended.output.len() > OUTPUT_LIMIT {
            return Err(Why::Long);
        }

        Credential::of_plugin(&ended.output).ok_or(Why::Unreadable)
    }

    /// Whether somebody can be asked, though perhaps not on standard input, and can interrupt.
    fn has_terminal(&self) -> bool {
        self.place == Place::Foreground && File::open("/dev/tty").is_ok()
    }

    fn is_interactive(&self) -> Result<bool, Why> {
        let has_terminal = self.place == Place::Foreground && io::stdin().is_terminal();
        match self.config.interactive_mode {
            Some(ExecInteractiveMode::Never) => Ok(false),
            Some(ExecInteractiveMode::Always) if !has_terminal => {
                Err(Why::NoTerminal(match self.place {
                    Place::Foreground => "run this command on a terminal",
                    Place::Background => "`tp quit` and `tp connect` log in again",
                }))
            }
            Some(ExecInteractiveMode::IfAvailable | ExecInteractiveMode::Always) | None => {
                Ok(has_terminal)
            }
        }
    }

    async fn end(&self, is_interactive: bool) -> Result<Ended, Why> {
        let child = self.command(is_interactive).spawn();
        let mut child = child.map_err(|error| Why::NotStarted {
            error,
            hint: self.config.install_hint.clone(),
        })?;
        let group = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .filter(|_| !self.has_terminal());
        let group = Group(group);
        let (stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let (mut output, mut words) = (Vec::new(), Vec::new());
        let ended = tokio::select! {
            ended = async {
                read(stdout, &mut output).await?;
                child.wait().await
            } => ended,
            () = async {
                keep_last(&mut stderr, &mut words).await;
                pending().await
            } => unreachable!("it does not end"),
        };
        group.leave();
        let status = ended.map_err(|error| Why::NotStarted { error, hint: None })?;
        if !status.success() {
            // What it leaves running may keep it open, which is nothing to wait for.
            let _ = timeout(WORDS_WAIT, keep_last(&mut stderr, &mut words)).await;
        }

        Ok(Ended {
            status,
            output,
            words,
        })
    }

    fn command(&self, is_interactive: bool) -> Command {
        let mut command = Command::new(self.config.command.as_deref().unwrap_or_default());
        command
            .args(self.config.args.iter().flatten())
            .stdin(match is_interactive {
                true => Stdio::inherit(),
                false => Stdio::null(),
            })
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        match self.place {
            Place::Foreground => command.stderr(Stdio::inherit()),
            Place::Background => command
                .stderr(Stdio::piped())
                .env_clear()
                .envs(&self.shell.variables),
        };
        if !self.has_terminal() {
            command.process_group(0);
        }
        if self.shell.directory.is_dir() {
            command.current_dir(&self.shell.directory);
        }
        let given = self.config.env.iter().flatten();
        command
            .envs(given.filter_map(|it| Some((it.get("name")?, it.get("value")?))))
            .env(INFORMATION, self.information(is_interactive));

        command
    }

    fn information(&self, interactive: bool) -> String {
        let information = Information {
            kind: "ExecCredential",
            api_version: self.config.api_version.as_deref().unwrap_or(VERSION),
            spec: Spec {
                interactive,
                cluster: self.config.cluster.as_ref(),
            },
        };

        serde_json::to_string(&information).expect("strings, numbers and JSON")
    }
}

/// Up to the end of `source`, or to what is too long.
async fn read(source: Option<ChildStdout>, output: &mut Vec<u8>) -> io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    let limit = u64::try_from(OUTPUT_LIMIT + 1).unwrap_or(u64::MAX);
    source.take(limit).read_to_end(output).await?;

    Ok(())
}

/// Keeps the end of what comes from `source`.
async fn keep_last(source: &mut Option<ChildStderr>, words: &mut Vec<u8>) {
    let Some(source) = source else { return };
    while let Ok(1..) = source.read_buf(words).await {
        let excess = words.len().saturating_sub(WORDS_LIMIT);
        words.drain(..excess);
    }
}

/// The last line that says something, without what a terminal would obey.
fn last_line(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let last = words.lines().rfind(|line| !line.trim().is_empty());

    last.unwrap_or("it said nothing")
        .trim()
        .chars()
        .filter(|it| !it.is_control())
        .collect()
}

/// The process group of a plugin that has no terminal to end it.
struct Group(Option<Pid>);

impl Group {
    /// What a plugin leaves running when it ends is its own affair.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended in this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests;

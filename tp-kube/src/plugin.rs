//! Credential plugins: programs that a kubeconfig names to log in with, run as kubectl runs them
//! (`client.authentication.k8s.io`, client-go's `plugin/pkg/client/auth/exec`).
//!
//! kube runs them as well, but twice for one login, blocking, without a timeout, in the environment
//! of this process, and again from a minute before the credential expires (kube-client 5.0.0,
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

/// Bounds a plugin that cannot ask the user.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a plugin's output. Tokens fit into a header, which servers bound to 1 MiB at most.
const MAX_OUTPUT: usize = 4 << 20;
/// Bytes kept of a plugin's standard error.
const MAX_STDERR: usize = 4 << 10;
/// Bounds the wait for more of it after a plugin has failed.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);
const EXEC_INFO_VARIABLE: &str = "KUBERNETES_EXEC_INFO";

/// How a plugin runs, which decides whether it can ask the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginMode {
    /// In the user's command: it may use the terminal, if there is one, and then has no timeout.
    Foreground,
    /// In a program without a terminal.
    Background,
}

/// The result of a plugin that has ended.
struct PluginOutput {
    status: ExitStatus,
    output: Vec<u8>,
    /// The end of its standard error, unless the user has seen it.
    stderr_tail: Vec<u8>,
}

/// A plugin and what it is run with.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    config: ExecConfig,
    shell: Shell,
    mode: PluginMode,
}

/// Why a plugin gives no credential. Its output and arguments may be secrets: only the last line of
/// its standard error is included.
#[derive(Debug, thiserror::Error)]
#[error("its credential plugin {command} {why}")]
pub(crate) struct PluginError {
    command: String,
    why: PluginErrorKind,
}

#[derive(Debug, thiserror::Error)]
enum PluginErrorKind {
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
    #[error("printed more than {} KiB", MAX_OUTPUT >> 10)]
    Long,
    #[error("did not end within {} s", RUN_TIMEOUT.as_secs())]
    Slow,
    #[error("was broken off")]
    Aborted,
    #[error("wants to ask somebody (interactiveMode: Always), and there is no terminal: {0}")]
    NoTerminal(&'static str),
}

fn advice(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("; {}", hint.trim().replace(char::is_control, " ")))
        .unwrap_or_default()
}

/// The version of the protocol if the kubeconfig names none.
const DEFAULT_API_VERSION: &str = "client.authentication.k8s.io/v1";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecInfo<'a> {
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
    pub(crate) fn new(config: ExecConfig, shell: Shell, mode: PluginMode) -> Self {
        Self {
            config,
            shell,
            mode,
        }
    }

    /// Runs it once. Dropping the future ends what it started.
    pub(crate) async fn run(&self) -> Result<Credential, PluginError> {
        self.try_run().await.map_err(|why| self.failure(why))
    }

    /// The error of a run whose task was aborted.
    pub(crate) fn aborted(&self) -> PluginError {
        self.failure(PluginErrorKind::Aborted)
    }

    fn failure(&self, why: PluginErrorKind) -> PluginError {
        PluginError {
            command: self.config.command.clone().unwrap_or_default(),
            why,
        }
    }

    async fn try_run(&self) -> Result<Credential, PluginErrorKind> {
        let is_interactive = self.is_interactive()?;
        let ended = match self.has_terminal() {
            true => self.run_child(is_interactive).await,
            false => timeout(RUN_TIMEOUT, self.run_child(is_interactive))
                .await
                .unwrap_or(Err(PluginErrorKind::Slow)),
        }?;
        if !ended.status.success() {
            return Err(PluginErrorKind::Failed {
                status: ended.status,
                words: (self.mode == PluginMode::Background).then(|| last_line(&ended.stderr_tail)),
            });
        }
        if ended.output.len() > MAX_OUTPUT {
            return Err(PluginErrorKind::Long);
        }

        Credential::of_plugin(&ended.output).ok_or(PluginErrorKind::Unreadable)
    }

    /// Returns whether the user can be asked, though perhaps not on standard input, and can
    /// interrupt.
    fn has_terminal(&self) -> bool {
        self.mode == PluginMode::Foreground && File::open("/dev/tty").is_ok()
    }

    fn is_interactive(&self) -> Result<bool, PluginErrorKind> {
        let has_terminal = self.mode == PluginMode::Foreground && io::stdin().is_terminal();
        match self.config.interactive_mode {
            Some(ExecInteractiveMode::Never) => Ok(false),
            Some(ExecInteractiveMode::Always) if !has_terminal => {
                Err(PluginErrorKind::NoTerminal(match self.mode {
                    PluginMode::Foreground => "run this command on a terminal",
                    PluginMode::Background => "`tp quit` and `tp connect` log in again",
                }))
            }
            Some(ExecInteractiveMode::IfAvailable | ExecInteractiveMode::Always) | None => {
                Ok(has_terminal)
            }
        }
    }

    async fn run_child(&self, is_interactive: bool) -> Result<PluginOutput, PluginErrorKind> {
        let child = self.command(is_interactive).spawn();
        let mut child = child.map_err(|error| PluginErrorKind::NotStarted {
            error,
            hint: self.config.install_hint.clone(),
        })?;
        let group = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .filter(|_| !self.has_terminal());
        let group = ProcessGroup(group);
        let (stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let (mut output, mut stderr_tail) = (Vec::new(), Vec::new());
        let ended = tokio::select! {
            ended = async {
                read(stdout, &mut output).await?;
                child.wait().await
            } => ended,
            () = async {
                keep_last(&mut stderr, &mut stderr_tail).await;
                pending().await
            } => unreachable!("it does not end"),
        };
        group.disarm();
        let status = ended.map_err(|error| PluginErrorKind::NotStarted { error, hint: None })?;
        if !status.success() {
            // Not to its end: processes that the plugin left running may keep the pipe open.
            let _ = timeout(STDERR_TIMEOUT, keep_last(&mut stderr, &mut stderr_tail)).await;
        }

        Ok(PluginOutput {
            status,
            output,
            stderr_tail,
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
        match self.mode {
            PluginMode::Foreground => command.stderr(Stdio::inherit()),
            PluginMode::Background => command
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
            .env(EXEC_INFO_VARIABLE, self.exec_info(is_interactive));

        command
    }

    fn exec_info(&self, interactive: bool) -> String {
        let info = ExecInfo {
            kind: "ExecCredential",
            api_version: self
                .config
                .api_version
                .as_deref()
                .unwrap_or(DEFAULT_API_VERSION),
            spec: Spec {
                interactive,
                cluster: self.config.cluster.as_ref(),
            },
        };

        serde_json::to_string(&info).expect("strings, numbers and JSON")
    }
}

/// Reads `source` to its end, or to one byte over the limit.
async fn read(source: Option<ChildStdout>, output: &mut Vec<u8>) -> io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    let limit = u64::try_from(MAX_OUTPUT + 1).unwrap_or(u64::MAX);
    source.take(limit).read_to_end(output).await?;

    Ok(())
}

/// Keeps the last bytes of `source`.
async fn keep_last(source: &mut Option<ChildStderr>, tail: &mut Vec<u8>) {
    let Some(source) = source else { return };
    while let Ok(1..) = source.read_buf(tail).await {
        let excess = tail.len().saturating_sub(MAX_STDERR);
        tail.drain(..excess);
    }
}

/// The last line that is not blank, without control characters.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty());

    last.unwrap_or("it said nothing")
        .trim()
        .chars()
        .filter(|it| !it.is_control())
        .collect()
}

/// The process group of a plugin without a terminal; killed when dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// Lets processes run on that the plugin left behind.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended in this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests;

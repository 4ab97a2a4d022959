//! A command that runs connected.

use std::{ffi::OsString, fs::File, io, os::unix::process::ExitStatusExt, process::ExitStatus};

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::process::Command;
use tp_proto::fault::{Fault, FaultKind};

use crate::{exit, signals::Signals};

/// Exit codes of a shell for a command that cannot be started.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs `command` to its end and forwards the signals that `tp` gets. Returns its exit code as a
/// shell would report it.
pub(in crate::cmd) async fn run(command: &[OsString], signals: &mut Signals) -> anyhow::Result<u8> {
    run_with(command, &[], async || signals.next().await).await
}

/// The same, with other variables than those of `tp`: one without a value is removed.
pub(in crate::cmd) async fn run_changed(
    command: &[OsString],
    changes: &[(OsString, Option<OsString>)],
    signals: &mut Signals,
) -> anyhow::Result<u8> {
    run_with(command, changes, async || signals.next().await).await
}

/// `next_signal` must be cancel-safe.
async fn run_with(
    command: &[OsString],
    changes: &[(OsString, Option<OsString>)],
    mut next_signal: impl AsyncFnMut() -> i32,
) -> anyhow::Result<u8> {
    let (program, args) = command.split_first().expect("clap wants at least one word");
    let mut command = Command::new(program);
    for (name, value) in changes {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = match command.args(args).spawn() {
        Ok(child) => child,
        Err(error) => return Ok(not_started(program, &error)),
    };
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);

    loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status?)),
            signal = next_signal() => {
                if let (Some(pid), Some(signal)) = (pid, to_hand_on(signal)) {
                    // The command may have ended meanwhile.
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }
}

/// A terminal signals the whole foreground group, the command included: do not send twice.
fn to_hand_on(signal: i32) -> Option<Signal> {
    let signal = Signal::from_named_raw(signal)?;
    let of_terminal = matches!(signal, Signal::INT | Signal::QUIT);

    (!(of_terminal && is_foreground())).then_some(signal)
}

/// Returns whether this is the foreground group of the controlling terminal, whatever standard
/// input is.
fn is_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else {
        return false;
    };

    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

fn not_started(program: &OsString, error: &io::Error) -> u8 {
    let program = program.display();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound => (NOT_FOUND, "no such command".to_owned()),
        _ => (NOT_EXECUTABLE, error.to_string()),
    };
    let fault = Fault::new(FaultKind::Failed, format!("cannot run {program}: {why}"));
    crate::progress::note(&format!("tp: {fault}"));

    code
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => exit::of_signal(signal),
        (None, None) => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    async fn code_of(command: &[&str]) -> u8 {
        let no_signal = async || std::future::pending().await;

        run_with(&words(command), &[], no_signal).await.unwrap()
    }

    #[tokio::test]
    async fn the_exit_code_is_that_of_the_command() {
        assert_eq!(code_of(&["true"]).await, 0);
        assert_eq!(code_of(&["sh", "-c", "exit 42"]).await, 42);
    }

    #[tokio::test]
    async fn variables_are_set_and_removed() {
        let script = "test \"$A\" = 'b c' && test -z \"${HOME+x}\" && test -n \"$PATH\"";
        let changes = [("A", Some("b c")), ("HOME", None)];
        let changes = changes.map(|(name, value)| (name.into(), value.map(OsString::from)));
        let no_signal = async || std::future::pending().await;

        let code = run_with(&words(&["sh", "-c", script]), &changes, no_signal).await;

        assert_eq!(code.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_command_that_a_signal_ended_has_the_code_of_a_shell() {
        assert_eq!(code_of(&["sh", "-c", "kill -TERM $$"]).await, 143);
    }

    #[tokio::test]
    async fn a_command_that_does_not_exist_has_the_code_of_a_shell() {
        assert_eq!(code_of(&["/does/not/exist"]).await, NOT_FOUND);
    }

    #[tokio::test]
    async fn signals_are_handed_on_to_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = "trap 'exit 7' USR1; : > \"$0\"; while :; do :; done";
        let command = words(&["sh", "-c", script, ready.to_str().unwrap()]);
        let is_sent = Cell::new(false);
        // An always ready source would starve the runtime, which must see the command end.
        let signal_when_ready = async || {
            if is_sent.replace(true) {
                std::future::pending::<()>().await;
            }
            while !ready.exists() {
                tokio::task::yield_now().await;
            }
            Signal::USR1.as_raw()
        };

        let code = run_with(&command, &[], signal_when_ready).await.unwrap();

        assert_eq!(code, 7);
    }
}

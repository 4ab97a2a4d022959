//! The way of the root daemon to the background, where sudo has started it on a terminal.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    process::{self, Command, Stdio},
};

use anyhow::Context as _;
use rustix::stdio::dup2_stdout;

/// Runs this program again, with `detached` in place of `flag`, and returns when that serves and has
/// let go of the terminal. sudo ends what it started with its pseudo-terminal (`use_pty` of sudoers(5)), and not
/// every sudo has a background of its own (`-b`).
pub(crate) fn detach(flag: &str, detached: &str) -> anyhow::Result<()> {
    let program = env::current_exe().context("cannot find this program")?;
    let arguments = env::args_os().skip(1).map(|argument| match argument {
        argument if argument == *flag => detached.into(),
        argument => argument,
    });
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program again")?;
    let mut told = Vec::new();
    if let Some(output) = &mut child.stdout {
        output
            .read_to_end(&mut told)
            .context("cannot wait for this program")?;
    }
    if told.is_empty() {
        let status = child.wait().context("cannot watch this program")?;
        // It has said why.
        process::exit(status.code().unwrap_or(1));
    }

    Ok(())
}

/// Says to [`detach`] that it may return.
pub(crate) fn tell_detached() -> io::Result<()> {
    io::stdout().write_all(b"detached\n")?;
    io::stdout().flush()?;
    let nowhere = File::options().write(true).open("/dev/null")?;

    Ok(dup2_stdout(nowhere)?)
}

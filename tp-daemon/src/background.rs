//! Moves a root daemon that sudo has started on a terminal to the background.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    process::{self, Command, Stdio},
};

use anyhow::Context as _;
use rustix::stdio::dup2_stdout;

/// Runs this program again, with `detached` in place of `flag`, and returns when the new process
/// serves and has left the terminal. With its pseudo-terminal (`use_pty` of sudoers(5)) sudo ends its
/// children, and not every sudo can run them in the background (`-b`).
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
    let mut message = Vec::new();
    if let Some(output) = &mut child.stdout {
        output
            .read_to_end(&mut message)
            .context("cannot wait for this program")?;
    }
    if message.is_empty() {
        let status = child.wait().context("cannot watch this program")?;
        // The child has printed why.
        process::exit(status.code().unwrap_or(1));
    }

    Ok(())
}

/// Tells the parent in [`detach`] that it may return.
pub(crate) fn report_detached() -> io::Result<()> {
    io::stdout().write_all(b"detached\n")?;
    io::stdout().flush()?;
    let dev_null = File::options().write(true).open("/dev/null")?;

    Ok(dup2_stdout(dev_null)?)
}

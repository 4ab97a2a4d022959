//! Runs programs: output shown or logged, failures with their reason, waits with a timeout.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::paths;

/// Between two polls of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// Cargo as a user starts it. The variables that `cargo run` sets about this package would rerun
/// build scripts of dependencies that watch them, and recompile everything above.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        if is_of_own_package(&name) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn is_of_own_package(variable: &OsStr) -> bool {
    let name = variable.to_string_lossy();
    ["CARGO_MANIFEST_", "CARGO_PKG_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// The command line, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();

    in_shell(&words)
}

/// Words as typed in bash: one line, quoted where necessary.
pub(crate) fn in_shell(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word.as_ref())).collect();

    quoted.join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@/+=,%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    if word.contains('\n') {
        let escaped = word.replace('\\', r"\\").replace('\'', r"\'");
        return format!("$'{}'", escaped.replace('\n', r"\n"));
    }

    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs a command whose output the user sees.
pub(crate) fn status(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{} does not start", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; standard error is part of a failure.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not start", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a verbose command with its output in a log; a failure shows the log's end.
pub(crate) fn logged(name: &str, command: &mut Command) -> Result<()> {
    let log = paths::logs().join(format!("{name}.log"));
    let file = create(&log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("{} does not start", shown(command)))?;
    if !status.success() {
        bail!(
            "`{}` ended with {status}; the end of {}:\n{}",
            shown(command),
            log.display(),
            tail(&log, 25)
        );
    }
    Ok(())
}

/// Creates a file and the folders above it.
pub(crate) fn create(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    File::create(path).with_context(|| format!("creating {}", path.display()))
}

/// Writes a file and creates the folders above it.
pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    create(path)?;
    fs::write(path, contents).with_context(|| format!("writing {}", path.display()))
}

/// The last lines of a file, or why there are none.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("({}: {error})", path.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A silent program in the background; killed when dropped.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;

        Ok(Self(child))
    }

    /// Fails once the program has ended.
    pub(crate) fn check_runs(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("it ended: {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A wait for a condition, with a timeout.
pub(crate) struct Wait<'a> {
    pub(crate) what: &'a str,
    pub(crate) within: Duration,
    /// The log whose end a failure shows.
    pub(crate) log: Option<&'a Path>,
}

impl Wait<'_> {
    /// Calls `probe` until it succeeds; its last error is part of the failure.
    pub(crate) fn until<T>(&self, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
        let end = Instant::now() + self.within;
        loop {
            let refusal = match probe() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if Instant::now() >= end {
                let log = self.log.map_or_else(String::new, |log| {
                    format!("\nthe end of {}:\n{}", log.display(), tail(log, 25))
                });
                bail!(
                    "waited {:?} for {} in vain: {refusal:#}{log}",
                    self.within,
                    self.what
                );
            }
            pause();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition that has a bound"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}

/// The full path of a program on PATH.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// The path of this program. If cargo has replaced the file since the start, Linux adds "
/// (deleted)" to the name.
pub(crate) fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program")?;
    let name = path.to_string_lossy();
    Ok(name
        .strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_copied_into_a_shell() {
        for (words, expected) in [
            (&["tp", "status"][..], "tp status"),
            (
                &["tp", "install", "--image=localhost/tp:1"],
                "tp install --image=localhost/tp:1",
            ),
            (&["psql", "-c", "select 1"], "psql -c 'select 1'"),
            (&["echo", "", "it's"], r"echo '' 'it'\''s'"),
            (&["curl", "%{http_code}\n"], r"curl $'%{http_code}\n'"),
            (&["echo", "a\\b'\nc"], r"echo $'a\\b\'\nc'"),
        ] {
            assert_eq!(in_shell(words), expected);
        }
    }

    /// Compares with the shell's own parsing.
    #[test]
    fn a_shell_reads_the_words_that_were_meant() {
        let words = [
            "a b",
            "it's",
            "%{remote_ip}\n",
            "a\\b'\nc",
            "",
            "$HOME",
            "*",
        ];
        let line = format!("printf '%s|' {}", in_shell(&words));

        let read = output(Command::new("bash").args(["-c", &line])).unwrap();

        assert_eq!(read, format!("{}|", words.join("|")));
    }
}

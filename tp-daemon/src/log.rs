//! The root daemon's log, whose size is bounded.

use std::{
    env,
    fs::File,
    io::{self, IsTerminal as _, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Mutex,
};

use rustix::fs::{OFlags, fcntl_getfl};
use tracing::Level;
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// In bytes.
const MAX_LOG_LEN: u64 = 4 << 20;

/// Logs to standard error from here on. `TP_LOG` has directives as `RUST_LOG` does, without spans; the
/// default is `info`.
pub(crate) fn start() {
    let directives = env::var("TP_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = directives.parse::<Targets>().unwrap_or_else(|error| {
        eprintln!("tp-daemon: TP_LOG is not followed: {error}");
        Targets::new().with_default(Level::INFO)
    });
    // aya logs every relocation.
    let filter = filter
        .with_target("aya", Level::WARN)
        .with_target("aya_obj", Level::WARN);
    let written = tracing_subscriber::fmt::layer()
        .with_writer(Mutex::new(Stderr::new()))
        .with_ansi(io::stderr().is_terminal());

    tracing_subscriber::registry()
        .with(written.with_filter(filter))
        .init();
}

/// Standard error. If it is a log file that `tp` opened for this program, the oldest lines are removed
/// when it is full: in the file itself, because root renames nothing in a user's directory.
#[derive(Debug)]
struct Stderr {
    log: Option<File>,
    limit: u64,
}

impl Stderr {
    fn new() -> Self {
        let copy = io::stderr().as_fd().try_clone_to_owned();

        Self {
            log: copy.ok().map(File::from).filter(is_ours),
            limit: MAX_LOG_LEN,
        }
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stderr().write(bytes)?;
        if let Some(log) = &self.log {
            shorten(log, self.limit)?;
        }

        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Returns whether the file is open for reading and appending, as `tp` opens it. The target of a
/// user's own redirection is left alone.
fn is_ours(file: &File) -> bool {
    let has_our_flags = fcntl_getfl(file)
        .is_ok_and(|flags| flags.contains(OFlags::APPEND) && flags.contains(OFlags::RDWR));

    has_our_flags && file.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Keeps the last quarter of a full log, from the beginning of a line.
fn shorten(mut log: &File, limit: u64) -> io::Result<()> {
    let length = log.metadata()?.len();
    if length <= limit {
        return Ok(());
    }
    let mut end = vec![0; usize::try_from(limit / 4).unwrap_or_default()];
    log.read_exact_at(&mut end, length - limit / 4)?;
    let begin = end
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    log.set_len(0)?;

    log.write_all(&end[begin..])
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use super::*;

    const LINES: usize = 1000;

    fn line(number: usize) -> String {
        format!("this is line {number:04}\n")
    }

    #[test]
    fn a_log_that_was_inherited_keeps_its_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.log");
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true);
            options.open(&path).unwrap()
        };
        let limit = 1000;

        let mut file = open();
        assert!(is_ours(&file));
        for number in 0..LINES {
            file.write_all(line(number).as_bytes()).unwrap();
            shorten(&file, limit).unwrap();
        }

        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 1000, "{}", text.len());
        assert!(text.starts_with("this is line"), "{text}");
        assert!(text.ends_with(&line(LINES - 1)), "{text}");
    }

    #[test]
    fn what_others_redirect_to_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();

        assert!(!is_ours(&File::create(dir.path().join("log")).unwrap()));
        assert!(!is_ours(&File::open("/dev/null").unwrap()));
    }
}

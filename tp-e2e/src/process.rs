//! Runs programs with a timeout, and waits for conditions.

use std::{
    fmt::Display,
    io::Read,
    os::fd::AsFd,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    time::Timespec,
};

/// For programs whose duration the test does not check.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two polls of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The bound of a wait on this computer: TP_SLOWNESS times as long, for one that is emulated. Not for
/// the bounds of what the test measures.
pub fn scaled(bound: Duration) -> Duration {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    let slowness = SLOWNESS.get_or_init(|| {
        std::env::var("TP_SLOWNESS").map_or(1, |text| text.parse().expect("a number"))
    });

    bound * *slowness
}

/// The result of a program.
#[derive(Debug)]
pub struct Finished {
    /// The command in words, for messages.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Finished {
    /// The exit code; 128 plus the signal for a program that a signal ended.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status
            .code()
            .or_else(|| self.status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1)
    }

    /// Fails the test unless the program succeeded; returns its standard output.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Fails the test unless the program ended with this code; returns its standard error.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> String {
        assert_eq!(self.code(), code, "{self}");
        self.stderr
    }

    /// The last line of standard error: progress, and output of plugins, may precede it.
    pub fn sentence(&self) -> &str {
        self.stderr.trim().lines().last().unwrap_or_default()
    }

    /// Fails the test unless the program ended with this code, and the last line of standard error
    /// contains these words.
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code(), code, "{self}");
        for word in words {
            let is_said = self.sentence().contains(word);
            assert!(is_said, "{word:?} is missing: {self}");
        }
    }

    /// Like `assert_refused`, with nothing else on standard error.
    #[track_caller]
    pub fn assert_refused_in_one_line(&self, code: i32, words: &[&str]) {
        self.assert_refused(code, words);
        assert_eq!(self.stderr.trim().lines().count(), 1, "{self}");
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {self}"))
    }
}

impl Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.elapsed,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Runs a command to its end, which must come in time.
#[track_caller]
pub fn run(command: &mut Command, bound: Duration) -> Finished {
    Running::start(command).finish(bound)
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    begin: Instant,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
    heard: [Vec<u8>; 2],
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let shown = shown(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`{shown}` does not start: {error}"));
        let stdout = listen(child.stdout.take().expect("standard output is piped"));
        let stderr = listen(child.stderr.take().expect("standard error is piped"));

        Self {
            child,
            command: shown,
            begin: Instant::now(),
            stdout,
            stderr,
            heard: [Vec::new(), Vec::new()],
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program's input; dropping it is end of file.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until these words are in either output.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str, bound: Duration) {
        let end = Instant::now() + bound;
        loop {
            self.listen_more();
            let said = self
                .heard
                .iter()
                .any(|text| String::from_utf8_lossy(text).contains(words));
            if said {
                return;
            }
            let ended = self.has_ended();
            assert!(
                !ended && Instant::now() < end,
                "`{}` {} within {bound:?} without saying {words:?}; it said:\n{}\n{}",
                self.command,
                if ended { "ended" } else { "went on" },
                String::from_utf8_lossy(&self.heard[0]),
                String::from_utf8_lossy(&self.heard[1])
            );
            pause();
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_some()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self, bound: Duration) -> Finished {
        drop(self.child.stdin.take());
        if !wait(&mut self.child, bound) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.listen_to_the_end();
            panic!(
                "`{}` did not end within {bound:?}; it said:\n{}\n{}",
                self.command,
                String::from_utf8_lossy(&self.heard[0]),
                String::from_utf8_lossy(&self.heard[1])
            );
        }
        let elapsed = self.begin.elapsed();
        let status = self.child.wait().expect("a child can be waited for");
        self.listen_to_the_end();
        let [stdout, stderr] = std::mem::take(&mut self.heard);

        Finished {
            command: self.command.clone(),
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            elapsed,
        }
    }

    fn listen_more(&mut self) {
        for (source, text) in [&self.stdout, &self.stderr]
            .into_iter()
            .zip(&mut self.heard)
        {
            while let Ok(more) = source.try_recv() {
                text.extend(more);
            }
        }
    }

    /// Waits at most a second for the end of the outputs, which a left process may hold open.
    fn listen_to_the_end(&mut self) {
        let end = Instant::now() + Duration::from_secs(1);
        for (source, text) in [&self.stdout, &self.stderr]
            .into_iter()
            .zip(&mut self.heard)
        {
            while let Ok(more) = source.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                text.extend(more);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for the end of a child; false after the timeout.
pub fn wait(child: &mut Child, bound: Duration) -> bool {
    if child
        .try_wait()
        .expect("a child can be waited for")
        .is_some()
    {
        return true;
    }
    let pid = Pid::from_child(child);
    let Ok(watch) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    let mut watched = [PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)];
    let timeout = Timespec::try_from(bound).expect("bounds are small");
    poll(&mut watched, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Sends a signal to a process that is not our child.
#[track_caller]
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.expect("a process id is positive");
    kill_process(pid, signal).unwrap_or_else(|error| panic!("signal to {pid:?}: {error}"));
}

/// Sends a signal to a process that may have ended.
pub fn kill_if_there(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Returns whether a process runs and is no zombie.
pub fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

/// Waits for the end of a process that is not our child.
#[track_caller]
pub fn expect_end(what: &str, pid: u32, bound: Duration) {
    eventually(&format!("the end of {what}"), bound, || {
        if lives(pid) {
            Err("it lives".to_owned())
        } else {
            Ok(())
        }
    });
}

/// Calls `probe` until it succeeds; after the [`scaled`] timeout fails the test with the last error.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let bound = scaled(bound);
    let end = Instant::now() + bound;
    loop {
        let refusal = match probe() {
            Ok(value) => return value,
            Err(refusal) => refusal,
        };
        assert!(
            Instant::now() < end,
            "waited {bound:?} for {what} in vain: {refusal}"
        );
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition that has a bound"
)]
pub(crate) fn pause() {
    thread::sleep(POLL_INTERVAL);
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Always reads: a full pipe would block the program.
fn listen(mut source: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (heard_tx, heard_rx) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count) = source.read(&mut buffer) {
            if count == 0 || heard_tx.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });

    heard_rx
}

//! A program on a terminal, as a user runs it.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::process;

/// A program whose input and outputs are one terminal; killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there are terminals");
        grantpt(&ours).expect("own terminals can be granted");
        unlockpt(&ours).expect("own terminals can be unlocked");
        let name = ptsname(&ours, Vec::new()).expect("a terminal has a name");
        let theirs = OpenOptions::new()
            .read(true)
            .write(true)
            .open(std::ffi::OsStr::from_bytes(name.as_bytes()))
            .expect("the far end of a terminal opens");
        let end = || OwnedFd::from(theirs.try_clone().expect("descriptors can be copied"));
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        // The command holds copies, and the terminal reaches its end only when all are closed.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());

        let keyboard = File::from(ours);
        let mut screen = keyboard.try_clone().expect("descriptors can be copied");
        let (seen_tx, seen_rx) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = screen.read(&mut buffer) {
                if count == 0 || seen_tx.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });

        Self {
            child,
            keyboard,
            screen: seen_rx,
            seen: Vec::new(),
        }
    }

    /// Waits until these words are on the screen.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str, bound: Duration) {
        let end = Instant::now() + bound;
        while !self.text().contains(words) {
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(more) => self.seen.extend(more),
                Err(_) => panic!("{words:?} is not on the screen:\n{}", self.text()),
            }
        }
    }

    /// Types a line.
    pub fn enter(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").expect("a terminal takes a line");
    }

    /// Ctrl-C.
    pub fn interrupt(&mut self) {
        self.keyboard
            .write_all(b"\x03")
            .expect("a terminal takes a key");
    }

    /// Waits for the end; returns the exit code and the screen's whole text.
    #[track_caller]
    pub fn finish(mut self, bound: Duration) -> (Option<i32>, String) {
        assert!(
            process::wait(&mut self.child, bound),
            "the program did not end within {bound:?}; its screen:\n{}",
            self.text()
        );
        let status = self.child.wait().expect("a child can be waited for");
        while let Ok(more) = self.screen.recv_timeout(Duration::from_millis(200)) {
            self.seen.extend(more);
        }

        (status.code(), self.text())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

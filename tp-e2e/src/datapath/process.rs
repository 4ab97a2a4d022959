//! Programs that speak in lines of JSON: sessions, applications, the root daemon.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process;

/// Lower numbers are never given out.
const FIRST_ALIAS: u32 = 256;
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that prints one JSON object per line; killed when dropped.
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// A session's message when it is ready.
    pub greeting: Value,
    log: String,
}

impl Process {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter starts");
        let (line_tx, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        forward_lines(stdout, line_tx.clone());
        forward_lines(stderr, line_tx);

        Self {
            child,
            lines,
            greeting: Value::Null,
            log: String::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next JSON object.
    #[track_caller]
    pub fn object(&mut self) -> Value {
        loop {
            let line = self.line();
            if let Ok(value) = serde_json::from_str(&line) {
                return value;
            }
        }
    }

    #[track_caller]
    pub fn wait_for_line(&mut self, words: &str) {
        while !self.line().contains(words) {}
    }

    /// All output so far that was not taken as an object.
    pub fn log(&mut self) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.log += &(line + "\n");
        }
        self.log.clone()
    }

    /// All output of an ended program.
    pub fn last_words(&mut self) -> String {
        while let Ok(line) = self.lines.recv_timeout(process::scaled(PATIENCE)) {
            self.log += &(line + "\n");
        }
        self.log.clone()
    }

    #[track_caller]
    fn line(&mut self) -> String {
        match self.lines.recv_timeout(process::scaled(PATIENCE)) {
            Ok(line) => {
                self.log += &line;
                self.log.push('\n');
                line
            }
            Err(_) => panic!("process {} says nothing more:\n{}", self.pid(), self.log),
        }
    }

    /// Sends a line to a session; returns its answer.
    #[track_caller]
    pub fn tell(&mut self, line: &str) -> Value {
        self.say(line);
        loop {
            let answer = self.object();
            // An unsolicited message of a session.
            if answer["event"] != "lost" {
                return answer;
            }
        }
    }

    /// Sends a line that has no answer.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("the process listens");
    }

    /// Sends a request to the root daemon through a session.
    #[track_caller]
    pub fn ask(&mut self, request: &Value) -> Value {
        self.tell(&request.to_string())["reply"].take()
    }

    /// The n-th alias of the session's bundle.
    #[track_caller]
    pub fn alias(&self, n: u32) -> String {
        let base = self.greeting["bundle"]["alias_base"].as_str();
        let base: Option<Ipv4Addr> = base.and_then(|base| base.parse().ok());
        let base = base.unwrap_or_else(|| panic!("no bundle in {}", self.greeting));

        Ipv4Addr::from(u32::from(base) + FIRST_ALIAS + n).to_string()
    }

    /// The value of a counter of the session's bundle.
    #[track_caller]
    pub fn counter(&mut self, name: &str) -> u64 {
        let counters = self.ask(&json!({"request": "counters"}));
        let named = ["drops", "not_steered"].iter().find_map(|group| {
            let list = counters[group].as_array()?;
            list.iter().find(|pair| pair[0] == name)?[1].as_u64()
        });

        named
            .or_else(|| counters[name].as_u64())
            .unwrap_or_else(|| panic!("no counter {name} in {counters}"))
    }

    #[track_caller]
    pub fn kill(&mut self) {
        process::signal(self.pid(), Signal::KILL);
        self.wait();
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Waits for the end; returns whether it succeeded.
    #[track_caller]
    pub fn wait(&mut self) -> bool {
        assert!(
            process::wait(&mut self.child, process::scaled(PATIENCE)),
            "process {} does not end",
            self.pid()
        );
        self.child
            .wait()
            .expect("a child can be waited for")
            .success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Always reads: a full pipe would block the program.
fn forward_lines(source: impl std::io::Read + Send + 'static, line_tx: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if line_tx.send(line).is_err() {
                return;
            }
        }
    });
}

//! Programs that stop reading, on the workstation and in the cluster.

use std::{io::Write as _, process::ChildStdin, time::Duration};

use crate::{
    far_host::FarHost,
    process::{Finished, Running},
    workstation::Workstation,
};

/// Opens connections, reads nothing until told to, and then everything.
///
/// SO_RCVBUF stays at its default. With a small fixed one and writes of all sizes, the kernel's
/// sender sometimes probes a window that has long been open, at growing intervals: also without tp,
/// up to 53 s for one of a hundred connections.
///
/// Arguments: number of connections, host, port, request on each, bytes expected.
const READER: &str = r#"
import socket, sys, threading
count, host, port, words, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
held = []
for _ in range(count):
    s = socket.socket()
    s.settimeout(20)
    s.connect((host, port))
    s.sendall(words.encode() + b"\n")
    held.append(s)
print("all are open", flush=True)
sys.stdin.readline()
total = 0
for s in held:
    read = 0
    while chunk := s.recv(1 << 20):
        read += len(chunk)
    assert read == size, read
    total += read
print("read", total, flush=True)
"#;

/// Opens connections and sends as much as is accepted, in a thread each. Prints the accepted bytes
/// when no more is accepted, and a line when all is.
///
/// Arguments: number of connections, host, port, bytes on each.
const WRITER: &str = r#"
import socket, sys, threading, time
count, host, port, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sent, block = [0] * count, bytes(64 << 10)
def write(i):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    s.settimeout(20)
    s.connect((host, port))
    s.settimeout(None)
    opened.release()
    while sent[i] < size:
        sent[i] += s.send(block[:size - sent[i]])
    s.shutdown(socket.SHUT_WR)
    assert s.recv(1) == b""
opened, threads = threading.Semaphore(0), []
for i in range(count):
    threads.append(threading.Thread(target=write, args=(i,)))
    threads[-1].start()
    opened.acquire()
before = -1
while sum(sent) > before:
    before = sum(sent)
    time.sleep(1)
print("stopped after", before, flush=True)
for t in threads: t.join()
print("sent", sum(sent), flush=True)
"#;

/// Accepts, reads nothing until told to, and then everything.
///
/// Arguments: address, port.
const HOLDER: &str = r#"
import socket, sys, threading
l = socket.socket()
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((sys.argv[1], int(sys.argv[2])))
l.listen(1000)
go = threading.Event()
def hold(s):
    go.wait()
    while s.recv(1 << 20): pass
    s.close()
def accept():
    while True: threading.Thread(target=hold, args=(l.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
print("listens", flush=True)
sys.stdin.readline()
go.set()
sys.stdin.readline()
"#;
const HOLD_PORT: &str = "7997";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Downloads whose program does not read.
#[derive(Debug)]
pub struct StalledDownloads {
    program: Running,
    input: ChildStdin,
    total: u64,
}

impl StalledDownloads {
    /// Downloads from the echo server of the connected namespace.
    #[track_caller]
    pub fn start(workstation: &Workstation, count: u64, size: u64) -> Self {
        let (count_word, size_word) = (count.to_string(), size.to_string());
        let words = format!("give {size}");
        let arguments = [&count_word, "echo", "7001", &words, &size_word];
        let mut command =
            workstation.command(&[&["/usr/bin/python3", "-c", READER], &arguments[..]].concat());
        let mut program = Running::start(&mut command);
        program.wait_for("all are open", START_TIMEOUT);
        let input = program.stdin().expect("it is not taken yet");

        Self {
            program,
            input,
            total: count * size,
        }
    }

    /// Lets the program read everything, in time.
    #[track_caller]
    pub fn read_all(mut self, bound: Duration) {
        self.input.write_all(b"\n").expect("the program waits");
        let finished = self.program.finish(bound);
        assert_says(finished, &format!("read {}", self.total));
    }
}

/// Uploads to a server that does not read.
#[derive(Debug)]
pub struct StalledUploads {
    program: Running,
    server: FarHost,
    total: u64,
}

impl StalledUploads {
    /// The workstation must be connected with `--also-proxy` for the address.
    #[track_caller]
    pub fn start(workstation: &Workstation, address: &str, count: u64, size: u64) -> Self {
        let mut server = FarHost::start(
            address,
            &["/usr/bin/python3", "-c", HOLDER, address, HOLD_PORT],
        );
        server.server.wait_for("listens", START_TIMEOUT);
        let (count_word, size_word) = (count.to_string(), size.to_string());
        let arguments = [&count_word, address, HOLD_PORT, &size_word];
        let mut command =
            workstation.command(&[&["/usr/bin/python3", "-c", WRITER], &arguments[..]].concat());
        let mut program = Running::start(&mut command);
        program.wait_for("stopped after", START_TIMEOUT);

        Self {
            program,
            server,
            total: count * size,
        }
    }

    /// Lets the server read everything, in time.
    #[track_caller]
    pub fn read_all(mut self, bound: Duration) {
        let mut input = self.server.server.stdin().expect("it is not taken yet");
        input.write_all(b"\n").expect("the server waits");
        let finished = self.program.finish(bound);
        assert_says(finished, &format!("sent {}", self.total));
    }
}

#[track_caller]
fn assert_says(finished: Finished, words: &str) {
    assert!(finished.status.success(), "{finished}");
    assert!(finished.stdout.contains(words), "{finished}");
}

//! A rate-limited link between the workstation and all others, by `tc tbf`, and a TCP connection
//! beside tp.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    fd::AsFd as _,
    net::sockopt::set_tcp_congestion,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::Value;

use crate::{
    cluster::testbed,
    process::{PATIENCE, pause, run},
};

/// The bucket's size: the largest packet that the kernel passes on.
const BURST: u64 = 64 << 10;
/// For one read or write, after which its thread checks whether it is over.
const IO_TIMEOUT: Duration = Duration::from_millis(50);

/// The limited direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    FromWorkstation,
    ToWorkstation,
}

/// The limit ends when this is dropped.
#[derive(Debug)]
pub struct LimitedLink {
    pub mbit: u64,
    namespace: String,
    device: &'static str,
}

/// Bytes that a link has carried, and bytes queued before it.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    pub bytes: u64,
    pub dropped: u64,
    pub backlog: u64,
}

impl LimitedLink {
    /// `queue` is the time that a full queue takes to pass the link.
    #[track_caller]
    #[must_use = "the limit ends with the guard"]
    pub fn new(direction: Direction, mbit: u64, queue: Duration) -> Self {
        let (namespace, device) = match direction {
            Direction::FromWorkstation => (testbed().workstation(), "e0"),
            Direction::ToWorkstation => (testbed().namespace("wire"), "p-ws"),
        };
        let link = Self {
            mbit,
            namespace,
            device,
        };
        let limit = link.bytes_in(queue).max(BURST);
        link.tc(&format!(
            "qdisc add dev {device} root tbf rate {mbit}mbit burst {BURST} limit {limit}"
        ));
        link
    }

    pub fn bytes_in(&self, time: Duration) -> u64 {
        (self.mbit as f64 * 1e6 / 8.0 * time.as_secs_f64()) as u64
    }

    pub fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / 1e6 / self.mbit as f64)
    }

    #[track_caller]
    pub fn counters(&self) -> Counters {
        let text = self.tc(&format!("-s -j qdisc show dev {}", self.device));
        let shown: Value = serde_json::from_str(&text).expect("tc prints JSON");
        let number = |name: &str| shown[0][name].as_u64().expect("tbf counts");

        Counters {
            bytes: number("bytes"),
            dropped: number("drops"),
            backlog: number("backlog"),
        }
    }

    /// Samples the queueing delay every few milliseconds while `action` runs.
    pub fn watch<T>(&self, action: impl FnOnce() -> T) -> (T, Vec<Duration>) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut waits = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    waits.push(self.time_of(self.counters().backlog));
                    pause();
                }
                waits
            });
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
            is_over.store(true, Ordering::Relaxed);
            let waits = watcher.join().expect("the watcher ends");
            match done {
                Ok(done) => (done, waits),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    #[track_caller]
    fn tc(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        testbed().run_inside(&self.namespace, &[&["tc"], &words[..]].concat())
    }
}

impl Drop for LimitedLink {
    fn drop(&mut self) {
        let mut command = testbed().inside(&self.namespace);
        command.args(["tc", "qdisc", "del", "dev", self.device, "root"]);
        run(&mut command, PATIENCE);
    }
}

/// Runs `action` in a network namespace of the testbed; its sockets stay there.
fn in_namespace<T: Send>(namespace: &str, action: impl FnOnce() -> T + Send) -> T {
    let path = Path::new("/run/netns").join(namespace);
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(&path).expect("the testbed has this namespace");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            action()
        });
        thread.join().expect("the thread ends")
    })
}

/// The congestion control of a TCP connection, whatever this machine's default is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CongestionControl {
    /// The default of Linux.
    Cubic,
    /// The kernel's, the first version of BBR.
    Bbr,
}

/// A kernel TCP connection beside tp that sends as much as it can, until dropped.
#[derive(Debug)]
pub struct TcpBeside {
    received: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TcpBeside {
    /// Between the workstation and the first node.
    #[track_caller]
    pub fn start(direction: Direction, control: CongestionControl) -> Self {
        let node = testbed().namespace("1");
        let workstation = testbed().workstation();
        let (from, to, address) = match direction {
            Direction::FromWorkstation => (workstation, node, "172.30.0.11:0"),
            Direction::ToWorkstation => (node, workstation, "172.30.0.200:0"),
        };
        let listener = in_namespace(&to, || TcpListener::bind(address)).expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let sender = in_namespace(&from, || TcpStream::connect_timeout(&address, PATIENCE))
            .expect("the other end listens");
        let (receiver, _) = listener.accept().expect("somebody has connected");
        let control = match control {
            CongestionControl::Cubic => "cubic",
            CongestionControl::Bbr => "bbr",
        };
        set_tcp_congestion(&sender, control).expect("the kernel has it");
        for end in [&sender, &receiver] {
            end.set_read_timeout(Some(IO_TIMEOUT))
                .expect("a bound can be set");
            end.set_write_timeout(Some(IO_TIMEOUT))
                .expect("a bound can be set");
        }
        let received = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let is_over = Arc::clone(&is_over);
                move || send(sender, &is_over)
            }),
            thread::spawn({
                let (is_over, received) = (Arc::clone(&is_over), Arc::clone(&received));
                move || receive(receiver, &is_over, &received)
            }),
        ];

        Self {
            received,
            is_over,
            threads,
        }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until the connection fills the link.
    #[track_caller]
    pub fn wait_until_it_fills(&self, link: &LimitedLink) {
        let end = Instant::now() + PATIENCE;
        let enough = link.bytes_in(Duration::from_secs(1));
        while self.received() < enough {
            assert!(Instant::now() < end, "TCP alone does not fill the link");
            pause();
        }
    }
}

impl Drop for TcpBeside {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn may_go_on(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn send(mut stream: TcpStream, is_over: &AtomicBool) {
    let block = [7; 64 << 10];
    while !is_over.load(Ordering::Relaxed) {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if may_go_on(&error) => {}
            Err(error) => panic!("TCP beside ended: {error}"),
        }
    }
}

fn receive(mut stream: TcpStream, is_over: &AtomicBool, received: &AtomicU64) {
    let mut block = vec![0; 64 << 10];
    while !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut block) {
            Ok(0) => return,
            Ok(length) => drop(received.fetch_add(length as u64, Ordering::Relaxed)),
            Err(error) if may_go_on(&error) => {}
            Err(error) => panic!("TCP beside ended: {error}"),
        }
    }
}

use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tp_agent_api::{AgentReply, AgentRequest, RedirectedPort};

use crate::agent::{Connected, Redirected};

pub(crate) const UID: &str = "3f1c0f0e-8f3a-4f6e-9a51-0c7a1d2e3f40";
pub(crate) const HOST_POD: &str = "3b0a0c6ed1d3b9ac8e7a3ac4d4fbc3d1";
pub(crate) const ID: &str = "8d5a1e0c7b6f4d3e2c1b0a9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b";
/// What the container's server says.
pub(crate) const CONTAINER: &str = "container";

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const SOCKET: &str = "agentd.sock";
const MANIFEST: &str = include_str!("../../../tp-cli/src/install/manifests/agents.yaml");
/// The user of the container's process.
const CONTAINER_USER: &str = "12345";

/// Two network namespaces, the program, and a connection to it.
pub(crate) struct Stage {
    connection: RefCell<Option<Connected>>,
    program: Child,
    container: Child,
    outside: Namespace,
    pod: Namespace,
    dir: TempDir,
}

/// Ended when it is dropped.
pub(crate) struct OtherProgram(Child);

/// Deleted when it is dropped.
struct Namespace(String);

/// Stages of this program so far.
static STAGES: AtomicU32 = AtomicU32::new(0);

impl Stage {
    /// With the capabilities of the manifest.
    pub(crate) fn new(name: &str) -> Self {
        Self::under(name, &confined(&capabilities()))
    }

    /// `under` are programs, with their arguments, that start the program.
    pub(crate) fn under(name: &str, under: &[String]) -> Self {
        // Tests run side by side, whatever name each has chosen.
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let name = format!("tpa{}{name}{number}", std::process::id());
        let (outside, pod) = (format!("{name}o"), format!("{name}p"));
        let (outside, pod) = (Namespace::new(outside), Namespace::new(pod));
        ip(&format!(
            "link add eth0 netns {} type veth peer name eth0 netns {}",
            outside.0, pod.0
        ));
        for (namespace, addresses) in [
            (
                &outside,
                &["10.77.0.1/24", "10.77.0.9/24", "fd77::1/64", "fd77::9/64"][..],
            ),
            (
                &pod,
                &["10.77.0.2/24", "10.77.0.3/24", "fd77::2/64", "fd77::3/64"][..],
            ),
        ] {
            let of = |command: &str| ip(&format!("-n {} {command}", namespace.0));
            of("link set lo up");
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                of(&format!("address add {address} dev eth0 {nodad}"));
            }
            of("link set eth0 up");
        }
        pod.run(|| {
            for port in [8080, 8081] {
                let listener = TcpListener::bind(format!("[::]:{port}")).unwrap();
                thread::spawn(move || serve(&listener, |_| CONTAINER.to_owned()));
            }
        });

        let dir = tempfile::tempdir().unwrap();
        // The agent is another user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let container = container(&pod);
        make_proc(dir.path(), &outside, &pod, container.id());
        let program = program(under, dir.path(), &dir.path().join(SOCKET));
        let stage = Self {
            connection: RefCell::new(None),
            program,
            container,
            outside,
            pod,
            dir,
        };
        let connection = stage.connect();
        connection.greet();
        stage.connection.replace(Some(connection));

        stage
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    pub(crate) fn program(&self) -> u32 {
        self.program.id()
    }

    /// What the program takes for `/proc`.
    pub(crate) fn proc_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Another process of the container, in the network of the node.
    pub(crate) fn add_process_outside(&self) -> PathBuf {
        let (from, to) = (self.dir.path().join("100"), self.dir.path().join("102"));
        fs::create_dir_all(to.join("ns")).unwrap();
        let outside = format!("/run/netns/{}", self.outside.0);
        symlink(outside, to.join("ns/net")).unwrap();
        fs::copy(from.join("cgroup"), to.join("cgroup")).unwrap();
        fs::copy(from.join("stat"), to.join("stat")).unwrap();

        to
    }

    /// The program of another pod of the DaemonSet, and a connection to it.
    pub(crate) fn another_program(&self) -> (OtherProgram, Connected) {
        let socket = self.dir.path().join("other.sock");
        let program = program(&confined(&capabilities()), self.dir.path(), &socket);
        let program = OtherProgram(program);
        let connection = Connected::to(&socket);
        connection.greet();

        (program, connection)
    }

    /// Another connection, which has not said hello.
    pub(crate) fn connect(&self) -> Connected {
        Connected::to(&self.socket())
    }

    pub(crate) fn request(&self, request: &AgentRequest) -> (AgentReply, Vec<OwnedFd>) {
        let connection = self.connection.borrow();

        connection.as_ref().expect("connected").request(request)
    }

    /// Sends a request with descriptors, and does not wait.
    pub(crate) fn send(&self, request: &AgentRequest, fds: &[BorrowedFd<'_>]) {
        let connection = self.connection.borrow();

        connection.as_ref().expect("connected").send(request, fds);
    }

    pub(crate) fn redirect(&self, ports: &[RedirectedPort], nodes: &[&str]) -> Redirected {
        let connection = self.connection.borrow();
        let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();

        connection
            .as_ref()
            .expect("connected")
            .redirect(ports, nodes)
    }

    /// One whose listeners accept nothing.
    pub(crate) fn redirect_unserved(&self, ports: &[RedirectedPort], nodes: &[&str]) -> Redirected {
        let connection = self.connection.borrow();
        let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();

        connection
            .as_ref()
            .expect("connected")
            .redirect_unserved(ports, nodes)
    }

    /// Closes the connection.
    pub(crate) fn hang_up(&self) {
        self.connection.borrow_mut().take();
    }

    pub(crate) fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.outside.run(work)
    }

    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pod.run(work)
    }

    /// Attachments to network namespaces that the program holds.
    pub(crate) fn links(&self) -> usize {
        let fds = fs::read_dir(format!("/proc/{}/fdinfo", self.program.id())).unwrap();

        fds.flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .filter(|text| text.contains("link_type:\tnetns"))
            .count()
    }

    /// The ports of sockets that listen in the pod at the addresses of our listeners, whoever holds them.
    pub(crate) fn ports_of_ours(&self) -> Vec<u16> {
        self.inside(|| {
            let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            let tables = [read("tcp").unwrap(), read("tcp6").unwrap()].concat();
            let ours = ["080000C0:", "00000001000000000000000001000000:"];
            tables
                .lines()
                .filter_map(|line| {
                    let mut fields = line.split_whitespace();
                    Some((fields.nth(1)?, fields.nth(1)?))
                })
                .filter(|(_, state)| *state == "0A")
                .filter_map(|(local, _)| ours.iter().find_map(|it| local.strip_prefix(it)))
                .map(|port| u16::from_str_radix(port, 16).unwrap())
                .collect()
        })
    }

    pub(crate) fn listeners_of_ours(&self) -> usize {
        self.ports_of_ours().len()
    }
}

impl Drop for OtherProgram {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in [&mut self.program, &mut self.container] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Those that the manifest gives to the program.
pub(crate) fn capabilities() -> Vec<&'static str> {
    let mut lines = MANIFEST.lines().map(str::trim);
    assert!(lines.any(|line| line == "command: [/tp-agentd]"));
    assert!(lines.any(|line| line == "add:"));
    let names: Vec<_> = lines
        .take_while(|line| line.starts_with('#') || line.starts_with("- "))
        .filter_map(|line| line.strip_prefix("- "))
        .collect();
    assert!(!names.is_empty());

    names
}

/// Starts a program as root with no capabilities but these.
pub(crate) fn confined(capabilities: &[&str]) -> Vec<String> {
    let added = capabilities
        .iter()
        .map(|it| format!(",+{}", it.to_lowercase()));
    let bounds = format!("-all{}", added.collect::<String>());

    [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([bounds])
    .collect()
}

fn program(under: &[String], dir: &Path, socket: &Path) -> Child {
    let own = [env!("CARGO_BIN_EXE_tp-agentd"), "--proc"].map(str::to_owned);
    let words: Vec<String> = under.iter().cloned().chain(own).collect();

    Command::new(&words[0])
        .args(&words[1..])
        .arg(dir)
        .arg("--socket")
        .arg(socket)
        .spawn()
        .unwrap()
}

/// The first process of the container, of another user than the program.
fn container(pod: &Namespace) -> Child {
    pod.run(|| {
        Command::new("setpriv")
            .args(["--reuid", CONTAINER_USER, "--clear-groups", "sleep", "600"])
            .env_clear()
            .env("A", "1")
            .env("SECRET", "x y")
            .spawn()
            .unwrap()
    })
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));

        Self(name)
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Polls until there is nothing left.
pub(crate) fn is_gone_soon(count: impl Fn() -> usize) -> bool {
    is_soon(|| count() == 0)
}

pub(crate) fn is_soon(check: impl Fn() -> bool) -> bool {
    let due = Instant::now() + WAIT_TIMEOUT;
    loop {
        if check() {
            return true;
        }
        if Instant::now() > due {
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "the interval of a bounded poll")]
        thread::sleep(POLL_INTERVAL);
    }
}

/// Answers every connection, until the listener does not listen any more.
pub(crate) fn serve(listener: &TcpListener, answer: impl Fn(&TcpStream) -> String) {
    while let Ok((mut client, _)) = listener.accept() {
        let text = answer(&client);
        // The client may have gone.
        let _ = client.write_all(text.as_bytes());
    }
}

/// A node with two processes of the pod's container, and one of a pod with the network of the node.
fn make_proc(proc: &Path, node: &Namespace, pod: &Namespace, container: u32) {
    let node_netns = format!("/run/netns/{}", node.0);
    let pod_netns = format!("/run/netns/{}", pod.0);
    let own = format!(
        "kubepods-pod{}.slice/cri-containerd-{ID}.scope",
        "0".repeat(32)
    );
    let path = |uid: &str| {
        let uid = uid.replace('-', "_");
        format!("kubepods-pod{uid}.slice/cri-containerd-{ID}.scope")
    };
    for (process, cgroup, netns, started, environ) in [
        ("1", "init.scope", node_netns.as_str(), 1, "A=0\0"),
        ("self", own.as_str(), "/proc/self/ns/net", 2, ""),
        ("99", &path(UID), &pod_netns, u64::MAX, "A=2\0"),
        ("101", &path(HOST_POD), &node_netns, 4, "A=3\0"),
    ] {
        let dir = proc.join(process);
        fs::create_dir_all(dir.join("ns")).unwrap();
        let above = if process == "1" {
            ""
        } else {
            "kubepods.slice/"
        };
        fs::write(dir.join("cgroup"), format!("0::/{above}{cgroup}\n")).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(dir.join("stat"), format!("9 (x) S {zeros}{started} 0 0\n")).unwrap();
        fs::write(dir.join("environ"), environ).unwrap();
        symlink(netns, dir.join("ns/net")).unwrap();
    }

    // One that has ended, and was not asked about.
    let dead = proc.join("98");
    fs::create_dir_all(&dead).unwrap();
    fs::write(
        dead.join("cgroup"),
        format!("0::/kubepods.slice/{}\n", path(UID)),
    )
    .unwrap();
    fs::write(
        dead.join("stat"),
        format!("9 (x) Z {}1 0 0\n", "0 ".repeat(18)),
    )
    .unwrap();

    let dir = proc.join("100");
    let real = |name: &str| PathBuf::from(format!("/proc/{container}/{name}"));
    fs::create_dir_all(dir.join("ns")).unwrap();
    fs::write(
        dir.join("cgroup"),
        format!("0::/kubepods.slice/{}\n", path(UID)),
    )
    .unwrap();
    let is_ready = || fs::read(real("comm")).unwrap() == b"sleep\n";
    assert!(is_soon(is_ready), "the container's process has not started");
    let stat = fs::read_to_string(real("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // A name that is no text.
    let stat = [b"100 (\xFF) ", fields.as_bytes()].concat();
    fs::write(dir.join("stat"), stat).unwrap();
    for name in ["environ", "ns/net"] {
        symlink(real(name), dir.join(name)).unwrap();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

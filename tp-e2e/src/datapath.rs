//! A machine for tests of the data path: a network namespace with a neighbour, a root daemon,
//! sessions and applications that are the program `datapath`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::eventually;

pub use container::{Bridge, Network};
pub use process::Process;
pub use snapshot::Snapshot;

mod container;
mod process;
mod snapshot;

/// Users without rights; the root daemon serves the group of the first.
pub const MEMBER: u32 = 65534;
pub const OUTSIDER: u32 = 1;

pub const STEER: &str = r#"{"include":["10.96.0.0/12"],"exclude":["10.96.9.0/24"]}"#;
pub const NAME_SERVERS: &str = r#"["127.0.0.53:53","172.31.0.53:53"]"#;

/// What several sessions differ in.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    /// Whose session it is.
    pub uid: u32,
    /// What its far side greets with, before the target.
    pub number: u8,
    pub scope: &'a str,
    pub steer: &'a str,
    pub name_servers: &'a str,
}

impl Default for Kind<'_> {
    fn default() -> Self {
        Self {
            uid: MEMBER,
            number: 0,
            scope: r#""user""#,
            steer: STEER,
            name_servers: NAME_SERVERS,
        }
    }
}

/// The machine must be restored within this time, whatever process has died.
pub const AS_BEFORE: Duration = Duration::from_secs(1);

/// A machine under test. Only one exists at a time: eBPF links belong to the whole computer.
pub struct Machine {
    netns: String,
    neighbour: String,
    dir: TempDir,
    daemon: Option<Process>,
    may_warn: bool,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Starts a root daemon that serves [`MEMBER`].
    #[track_caller]
    pub fn new(helper: &Path) -> Self {
        let mut machine = Self::without_daemon(helper);
        machine.start_daemon(&["--group", &MEMBER.to_string()]);
        machine
    }

    #[track_caller]
    pub fn without_daemon(helper: &Path) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();

        let dir = TempDir::with_prefix("tp-datapath-").expect("a folder can be made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("own folder");
        let daemon = helper.with_file_name("tp-daemon");
        for program in [helper, &daemon] {
            let name = program.file_name().expect("a program has a name");
            fs::copy(program, dir.path().join(name)).unwrap_or_else(|error| {
                panic!(
                    "{}: {error}: build it with `cargo build --release -p tp-daemon`",
                    program.display()
                )
            });
        }
        let machine = Self {
            netns: format!("tpdp{id}-{n}"),
            neighbour: format!("tpdpn{id}-{n}"),
            dir,
            daemon: None,
            may_warn: false,
            _alone: alone,
        };
        machine.make_network();
        machine
    }

    fn make_network(&self) {
        let (own, other) = (&self.netns, &self.neighbour);
        for netns in [own, other] {
            sh(&format!("ip netns add {netns}"));
            sh(&format!("ip -n {netns} link set lo up"));
        }
        sh(&format!(
            "ip link add e0 netns {own} type veth peer name e0 netns {other}"
        ));
        for (netns, address) in [(own, "172.31.0.2"), (other, "172.31.0.1")] {
            sh(&format!("ip -n {netns} address add {address}/24 dev e0"));
            // Without this, an address that is tentative in the snapshot would differ later.
            sh(&format!("ip -n {netns} link set e0 addrgenmode none"));
            sh(&format!("ip -n {netns} link set e0 up"));
        }
        sh(&format!("ip -n {own} route add default via 172.31.0.1"));
        // Only this machine keeps the neighbour from the aliases.
        sh(&format!(
            "ip -n {other} route add 240.0.0.0/4 via 172.31.0.2"
        ));
        let mut forward = self.command(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        assert!(forward.status().is_ok_and(|status| status.success()));
        // The cluster's networks are unreachable at once, without tp.
        sh(&format!("ip -n {own} route add unreachable 10.96.0.0/12"));
    }

    #[track_caller]
    pub fn start_daemon(&mut self, arguments: &[&str]) {
        self.start_daemon_with(arguments, &[]);
    }

    #[track_caller]
    pub fn start_daemon_with(&mut self, arguments: &[&str], environment: &[(&str, &str)]) {
        let mut command = self.daemon_command(arguments);
        command.envs(environment.iter().copied());
        let mut daemon = Process::start(&mut command);
        daemon.wait_for_line("Root daemon is ready");
        self.daemon = Some(daemon);
    }

    /// Starts the root daemon by a command that execs it.
    #[track_caller]
    pub fn start_daemon_by(&mut self, launcher: &[String], arguments: &[&str]) {
        let socket = self.socket();
        let words = [
            &["setpriv", "--pdeathsig", "KILL", "--"],
            &as_strs(launcher)[..],
            &["root", "--socket", &socket],
            arguments,
        ];
        let mut daemon = Process::start(self.command(&words.concat()).env_remove("SUDO_UID"));
        daemon.wait_for_line("Root daemon is ready");
        self.daemon = Some(daemon);
    }

    /// The root daemon's command, in the namespace; it ends with this thread.
    pub fn daemon_command(&self, arguments: &[&str]) -> Command {
        self.daemon_command_at(&self.socket(), arguments)
    }

    /// The command of another root daemon, with another socket.
    pub fn daemon_command_at(&self, socket: &str, arguments: &[&str]) -> Command {
        let program = self.dir.path().join("tp-daemon").display().to_string();
        let words = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            &program,
            "root",
            "--socket",
            socket,
        ];
        let mut command = self.command(&[&words, arguments].concat());
        command.env_remove("SUDO_UID");
        command
    }

    pub fn daemon_mut(&mut self) -> &mut Process {
        self.daemon.as_mut().expect("the root daemon was started")
    }

    /// The test provokes warnings of the root daemon.
    pub fn may_warn(&mut self) {
        self.may_warn = true;
    }

    pub fn socket(&self) -> String {
        self.dir.path().join("root.sock").display().to_string()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command of root's on this machine.
    pub fn command(&self, words: &[&str]) -> Command {
        in_netns(&self.netns, words)
    }

    /// A session of [`MEMBER`] that steers [`STEER`].
    #[track_caller]
    pub fn session(&self) -> Process {
        self.session_of(MEMBER, r#""user""#, STEER)
    }

    #[track_caller]
    pub fn session_of(&self, uid: u32, scope: &str, steer: &str) -> Process {
        self.session_like(Kind {
            uid,
            scope,
            steer,
            ..Kind::default()
        })
    }

    /// A session of a user whom the root daemon of [`Machine::new`] serves.
    #[track_caller]
    pub fn session_like(&self, kind: Kind<'_>) -> Process {
        let socket = self.socket();
        let number = kind.number.to_string();
        let words = [
            "session",
            &socket,
            "/proc/self/ns/net",
            kind.scope,
            kind.steer,
            kind.name_servers,
            &number,
        ];
        let group = MEMBER.to_string();
        let mut session = Process::start(&mut self.helper_in(kind.uid, &group, &words));
        let ready = session.object();
        assert_eq!(ready["event"], "ready", "{ready}");
        session.greeting = ready;
        session
    }

    /// Starts a session that may fail to open.
    #[track_caller]
    pub fn try_session(&self, uid: u32, netns: &str, scope: &str, steer: &str) -> Process {
        let socket = self.socket();
        let words = ["session", &socket, netns, scope, steer, NAME_SERVERS];
        Process::start(&mut self.helper(uid, &words))
    }

    /// A session of [`MEMBER`] that misuses its descriptors, with these fields of the request for it.
    #[track_caller]
    pub fn rogue(&self, open: &str, steer: &str, name_servers: &str) -> Process {
        let socket = self.socket();
        let words = ["rogue", &socket, open, steer, name_servers];
        let mut rogue = Process::start(&mut self.helper(MEMBER, &words));
        rogue.greeting = rogue.object();
        assert_eq!(rogue.greeting["event"], "ready", "{}", rogue.greeting);
        rogue
    }

    /// The report of an application of this user.
    #[track_caller]
    pub fn app(&self, uid: u32, words: &[&str]) -> Value {
        self.start_app(uid, words).object()
    }

    #[track_caller]
    pub fn start_app(&self, uid: u32, words: &[&str]) -> Process {
        Process::start(&mut self.helper(uid, &[&["app"], words].concat()))
    }

    /// The report of an application of the neighbour, which is no user of this machine.
    #[track_caller]
    pub fn neighbours_app(&self, uid: u32, words: &[&str]) -> Value {
        self.start_neighbours_app(uid, words).object()
    }

    #[track_caller]
    pub fn start_neighbours_app(&self, uid: u32, words: &[&str]) -> Process {
        let words = self.helper_words(uid, &[&["app"], words].concat());
        Process::start(&mut in_netns(&self.neighbour, &as_strs(&words)))
    }

    /// A command on this machine, as a user without groups.
    pub fn command_of(&self, uid: u32, words: &[&str]) -> Command {
        self.command(&as_strs(&unprivileged(uid, words)))
    }

    /// The report of an application whose program is set-user-id root.
    #[track_caller]
    pub fn setuid_app(&self, words: &[&str]) -> Value {
        let program = self.setuid_helper().display().to_string();
        Process::start(&mut self.command_of(MEMBER, &[&[&program, "app"], words].concat())).object()
    }

    pub fn setuid_helper(&self) -> PathBuf {
        let program = self.dir.path().join("datapath-setuid");
        if !program.exists() {
            fs::copy(self.dir.path().join("datapath"), &program).expect("the folder is writable");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("own file");
        }
        program
    }

    pub fn neighbour(&self) -> &str {
        &self.neighbour
    }

    /// A command that runs the helper as this user.
    pub fn helper(&self, uid: u32, words: &[&str]) -> Command {
        self.command(&as_strs(&self.helper_words(uid, words)))
    }

    /// A command that runs the helper as this user in one more group.
    pub fn helper_in(&self, uid: u32, group: &str, words: &[&str]) -> Command {
        let mut all = self.helper_words(uid, words);
        if let Some(groups) = all.iter_mut().find(|it| *it == "--clear-groups") {
            *groups = format!("--groups={group}");
        }
        self.command(&as_strs(&all))
    }

    /// The command that runs the helper as this user.
    pub fn helper_words(&self, uid: u32, words: &[&str]) -> Vec<String> {
        let program = self.dir.path().join("datapath").display().to_string();
        if uid == 0 {
            return [&[program.as_str()], words]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect();
        }

        unprivileged(uid, &[&[program.as_str()], words].concat())
    }

    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self)
    }

    /// Fails the test unless this machine equals the snapshot within a second.
    #[track_caller]
    pub fn assert_as(&self, before: &Snapshot) {
        eventually("the machine to be as before", AS_BEFORE, || {
            let differences = self.snapshot().differences(before);
            if differences.is_empty() {
                Ok(())
            } else {
                Err(differences)
            }
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut daemon = self.daemon.take();
        let log = daemon.as_mut().map(Process::log).unwrap_or_default();
        drop(daemon);
        for netns in [&self.netns, &self.neighbour] {
            let _ = Command::new("ip").args(["netns", "delete", netns]).status();
        }
        if thread::panicking() {
            eprintln!("--- root daemon\n{log}");
        } else if !self.may_warn {
            assert!(!log.contains("ERROR") && !log.contains(" WARN "), "{log}");
        }
    }
}

/// The command that runs these words as a user without groups.
fn unprivileged(uid: u32, words: &[&str]) -> Vec<String> {
    let uid = uid.to_string();
    let identity = [
        "setpriv",
        "--reuid",
        &uid,
        "--regid",
        &uid,
        "--clear-groups",
        "--",
    ];

    [&identity, words]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// `ip netns exec` would hide the cgroups.
fn in_netns(netns: &str, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{netns}"))
        .args(words)
        .current_dir("/");
    command
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[track_caller]
fn sh(command: &str) {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("a shell starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
}

//! A person at the workstation: an account, a kubeconfig, a root daemon and at most one session.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cluster::testbed,
    files::read_json,
    process::{self, Finished, PATIENCE, Running, eventually, run},
    programs::programs,
    user::Account,
};

mod steps;

pub use steps::{CONNECT_TO_SHOP, READ_WEB};

/// For connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// One person with their own files and processes.
#[derive(Debug)]
pub struct Workstation {
    account: Account,
    kubeconfig: PathBuf,
    root_socket: PathBuf,
    /// Ends the session, then the root daemon, at the end of its input.
    keeper: Option<Child>,
    may_warn: bool,
    is_shared: bool,
    home: TempDir,
}

impl Workstation {
    /// Starts a root daemon, and no session.
    #[track_caller]
    pub fn new(account: Account, person: &str) -> Self {
        testbed().install_tp();
        let mut workstation = Self::without_root_daemon(account, person);
        workstation.start_root_daemon();
        workstation
    }

    /// Starts nothing.
    #[track_caller]
    pub fn without_root_daemon(account: Account, person: &str) -> Self {
        account.ensure();
        let homes = testbed().dir().join("e2e");
        fs::create_dir_all(&homes).expect("the testbed's folder is writable: run as root");
        let home = TempDir::with_prefix_in("p", &homes).expect("a folder can be made");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711))
            .expect("own folders can be opened");
        for folder in ["run", "state"] {
            let folder = home.path().join(folder);
            fs::create_dir(&folder).expect("a folder can be made");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                .expect("own folders can be closed");
            account.own(&folder);
        }
        let kubeconfig = home.path().join("kubeconfig");
        fs::copy(testbed().kubeconfig(person), &kubeconfig)
            .unwrap_or_else(|error| panic!("kubeconfig of {person}: {error}"));
        account.own(&kubeconfig);

        Self {
            account,
            kubeconfig,
            root_socket: home.path().join("root.sock"),
            keeper: None,
            may_warn: false,
            is_shared: false,
            home,
        }
    }

    /// The shared session of this test program, which no test may end: connected as an unprivileged
    /// user to the namespace shop. No test may make it log a warning.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Workstation> = OnceLock::new();
        SHARED.get_or_init(|| {
            let mut workstation = Self::new(Account::Colleague, "dev");
            workstation.connect(&["--namespace", "shop"]);
            workstation.is_shared = true;
            workstation
        })
    }

    /// Starts a root daemon of this workstation's own and waits until it listens.
    ///
    /// A shell holds it, which also ends session and daemon when this test program is killed, at
    /// the end of its input.
    #[track_caller]
    pub fn start_root_daemon(&mut self) {
        self.start_root_daemon_for("tp");
    }

    /// Starts a root daemon for root and the members of another group.
    #[track_caller]
    pub fn start_root_daemon_for(&mut self, group: &str) {
        self.start_root_daemon_below(group, &[]);
    }

    /// Starts a root daemon by a command that execs it; its words hold no spaces.
    #[track_caller]
    pub fn start_root_daemon_below(&mut self, group: &str, launcher: &[&str]) {
        if let Some(keeper) = self.keeper.take() {
            end_keeper(keeper);
        }
        let log = fs::File::create(self.home.path().join("root.log")).expect("a file can be made");
        let quit: Vec<String> = self
            .account
            .prefix()
            .into_iter()
            .chain([programs().join("tp").display().to_string(), "quit".into()])
            .collect();
        let mut command = self.base_command();
        command
            .args([
                "sh",
                "-c",
                "daemon=$1 socket=$2 group=$3 launcher=$4; shift 4\n\
                 $launcher \"$daemon\" root --socket \"$socket\" --group \"$group\" & root=$!\n\
                 read -r _; \"$@\" >/dev/null 2>&1; kill -TERM $root 2>/dev/null; wait $root",
                "keeper",
            ])
            .arg(programs().join("tp-daemon"))
            .arg(&self.root_socket)
            .arg(group)
            .arg(launcher.join(" "))
            .args(quit)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        let mut keeper = command.spawn().expect("a shell starts");

        eventually("the root daemon to listen", Duration::from_secs(10), || {
            // The socket of a killed daemon may still exist.
            if self.root_log().contains("is ready") {
                return Ok(());
            }
            let ended = keeper.try_wait().ok().flatten().is_some();
            assert!(!ended, "the root daemon ended:\n{}", self.root_log());
            Err(self.root_log())
        });
        self.keeper = Some(keeper);
    }

    /// nsenter, with this person's environment.
    fn base_command(&self) -> Command {
        self.place_in(&testbed().workstation())
    }

    fn place_in(&self, namespace: &str) -> Command {
        let mut command = testbed().inside(namespace);
        command
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-c"])
            .arg(
                "mount --bind \"$0\" /etc/resolv.conf && \
                 { [ ! -e \"$TP_TEST_HOSTS\" ] || mount --bind \"$TP_TEST_HOSTS\" /etc/hosts; } && \
                 exec \"$@\"",
            )
            .arg(testbed().resolv_conf())
            .current_dir("/")
            .env(
                "PATH",
                format!("{}:{}", programs().display(), testbed().path()),
            )
            .env("TP_TEST_HOSTS", self.home.path().join("hosts"))
            .env("HOME", self.home.path().join("state"))
            .env("USER", self.account.name())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TP_ROOT_SOCKET", &self.root_socket)
            .env("TP_STATE_DIR", self.state_dir())
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env_remove("SUDO_UID");
        command
    }

    /// A command as this person.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_as(self.account, words)
    }

    /// A command at this workstation as another account.
    pub fn command_as(&self, account: Account, words: &[&str]) -> Command {
        account.ensure();
        let mut command = self.base_command();
        command.args(account.prefix()).args(words);
        command
    }

    /// A command as this person in another network namespace of the testbed.
    pub fn command_in(&self, namespace: &str, words: &[&str]) -> Command {
        self.account.ensure();
        let mut command = self.place_in(namespace);
        command.args(self.account.prefix()).args(words);
        command
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        self.run_as(self.account, words)
    }

    #[track_caller]
    pub fn run_as(&self, account: Account, words: &[&str]) -> Finished {
        self.run_to_the_end(&mut self.command_as(account, words))
    }

    #[track_caller]
    pub fn tp(&self, words: &[&str]) -> Finished {
        self.run(&[&["tp"], words].concat())
    }

    /// The shared workstation is never dropped, so its log is checked after each command.
    #[track_caller]
    fn run_to_the_end(&self, command: &mut Command) -> Finished {
        let finished = run(command, PATIENCE);
        if self.is_shared {
            self.assert_quiet();
        }
        finished
    }

    /// Connects, which must succeed.
    #[track_caller]
    pub fn connect(&self, flags: &[&str]) -> Finished {
        let words = [&["tp", "connect"], flags].concat();
        // 75 asks to retry: a new installation refuses for a moment.
        let connected = eventually("a connection", CONNECT_TIMEOUT, || {
            let connected = run(&mut self.command(&words), CONNECT_TIMEOUT);
            if connected.code() == 75 {
                Err(connected.stderr)
            } else {
                Ok(connected)
            }
        });
        assert!(
            connected.status.success(),
            "{connected}\n--- session\n{}\n--- root daemon\n{}",
            self.session_log(),
            self.root_log()
        );
        connected
    }

    /// The report of the echo client.
    #[track_caller]
    pub fn echo(&self, words: &[&str]) -> Value {
        self.echo_as(self.account, words)
    }

    #[track_caller]
    pub fn echo_as(&self, account: Account, words: &[&str]) -> Value {
        let finished = self.run_to_the_end(&mut self.echo_command_as(account, words));
        assert!(finished.status.success(), "{finished}");
        let mut seen = finished.json();
        let mut result = seen["result"].take();
        result["elapsed_ms"] = seen["elapsed_ms"].take();
        result
    }

    /// Starts the echo client in the background, for connections that a test interrupts.
    #[track_caller]
    pub fn start_echo(&self, words: &[&str]) -> Running {
        Running::start(&mut self.echo_command_as(self.account, words))
    }

    fn echo_command_as(&self, account: Account, words: &[&str]) -> Command {
        let client = testbed().echo_client();
        let client = client.to_str().expect("the testbed's path is UTF-8");
        self.command_as(account, &[&[client], words].concat())
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        let finished = self.tp(&["status", "--output", "json"]);
        assert!(
            finished.status.success(),
            "{finished}\n{}",
            self.session_log()
        );
        finished.json()
    }

    pub fn account(&self) -> Account {
        self.account
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Gives later programs another /etc/hosts.
    #[track_caller]
    pub fn set_hosts(&self, text: &str) {
        let hosts = self.home.path().join("hosts");
        fs::write(&hosts, text).expect("own folders are writable");
        fs::set_permissions(&hosts, fs::Permissions::from_mode(0o644)).expect("own file");
    }

    /// Sets fields of the kubeconfig's cluster, such as `server` and `proxy-url`.
    #[track_caller]
    pub fn set_cluster(&self, fields: &[(&str, &str)]) {
        let mut config = read_json(&self.kubeconfig);
        for (name, value) in fields {
            config["clusters"][0]["cluster"][name] = (*value).into();
        }
        fs::write(&self.kubeconfig, config.to_string()).expect("own file");
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The socket of the session in the workstation's network namespace.
    pub fn session_socket(&self) -> PathBuf {
        let namespace = format!("/run/netns/{}", testbed().workstation());
        let namespace = fs::metadata(namespace).expect("the workstation has a namespace");
        self.home
            .path()
            .join(format!("run/tp/session-{}.sock", namespace.ino()))
    }

    pub fn root_socket(&self) -> &Path {
        &self.root_socket
    }

    #[track_caller]
    pub fn session_pid(&self) -> u32 {
        pid(&self.status()["session_pid"])
    }

    #[track_caller]
    pub fn root_pid(&self) -> u32 {
        pid(&self.status()["daemon"]["pid"])
    }

    /// The test provokes warnings.
    pub fn may_warn(&mut self) {
        self.may_warn = true;
    }

    pub fn root_log(&self) -> String {
        fs::read_to_string(self.home.path().join("root.log")).unwrap_or_default()
    }

    /// The logs of all sessions of this person.
    pub fn session_log(&self) -> String {
        let Ok(entries) = fs::read_dir(self.state_dir()) else {
            return String::new();
        };
        entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .collect()
    }

    /// Fails the test if a log holds a warning or an error: normal use logs none.
    #[track_caller]
    pub fn assert_quiet(&self) {
        let complaints: Vec<String> = (self.session_log() + &self.root_log())
            .lines()
            .filter(|line| {
                line.contains(" WARN ") || line.contains("ERROR") || line.contains("panicked")
            })
            .map(str::to_owned)
            .collect();
        assert!(
            complaints.is_empty(),
            "the logs complain:\n{}",
            complaints.join("\n")
        );
    }
}

impl Drop for Workstation {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            end_keeper(keeper);
        } else {
            let _ = self.command(&["tp", "quit"]).output();
        }
        if thread::panicking() {
            eprintln!(
                "--- log of the session\n{}\n--- log of the root daemon\n{}",
                tail(&self.session_log()),
                tail(&self.root_log())
            );
        } else if !self.may_warn {
            self.assert_quiet();
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn end_keeper(mut keeper: Child) {
    drop(keeper.stdin.take());
    if !process::wait(&mut keeper, Duration::from_secs(20)) {
        let _ = keeper.kill();
    }
    let _ = keeper.wait();
}

#[track_caller]
fn pid(value: &Value) -> u32 {
    value
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid > 1)
        .unwrap_or_else(|| panic!("a process id is expected instead of {value}"))
}

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use futures::future::{BoxFuture, ready};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::sync::watch;
use tp_agent::{
    NodeAgent,
    environ::SessionRights,
    facts::{Facts, InterceptFacts, PodFacts, Rules, UserReview},
};
use tp_agent_api::PodIds;
use tp_core::intercept::holders::WorkloadKey;
use tp_proto::crd::SessionReference;

use crate::manager::{INTERCEPT, Manager};

pub(crate) const UID: &str = "3f1c0f0e-8f3a-4f6e-9a51-0c7a1d2e3f40";
/// What the container's server says.
pub(crate) const CONTAINER: &str = "container";
pub(crate) const ID: &str = "8d5a1e0c7b6f4d3e2c1b0a9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b";

/// Two network namespaces, the container's server in one, and tp-agentd.
pub(crate) struct Stage {
    agentd: RefCell<Child>,
    outside: Namespace,
    _pod: Namespace,
    dir: TempDir,
}

/// Only the user of the Session `alice` may read environments.
struct Rights;

impl SessionRights for Rights {
    fn check_exec(
        &self,
        session: SessionReference,
        namespace: String,
    ) -> BoxFuture<'static, Result<(), String>> {
        let is_allowed = session.name == "alice" && namespace == "shop";
        let refused = || format!("{} may not create pods/exec", session.name);

        Box::pin(ready(is_allowed.then_some(()).ok_or_else(refused)))
    }
}

/// Deleted when it is dropped.
struct Namespace(String);

/// Stages of this program so far.
static STAGES: AtomicU32 = AtomicU32::new(0);

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        // Tests run side by side, whatever name each has chosen.
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let name = format!("tpn{}{name}{number}", std::process::id());
        let (outside, pod) = (format!("{name}o"), format!("{name}p"));
        let (outside, pod) = (Namespace::new(outside), Namespace::new(pod));
        ip(&format!(
            "link add eth0 netns {} type veth peer name eth0 netns {}",
            outside.0, pod.0
        ));
        for (namespace, addresses) in [
            (&outside, ["10.77.0.1/24", "fd77::1/64"]),
            (&pod, ["10.77.0.2/24", "fd77::2/64"]),
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
            let listener = TcpListener::bind("[::]:8080").unwrap();
            thread::spawn(move || {
                while let Ok((mut client, peer)) = listener.accept() {
                    let mut request = Vec::new();
                    // The client may have gone.
                    let _ = client.read_to_end(&mut request);
                    let _ = client.write_all(CONTAINER.as_bytes());
                    if request.starts_with(b"GET ") {
                        let peer = peer.ip().to_canonical();
                        let _ = write!(client, " {peer} {}", request.len());
                    }
                }
            });
        });
        let dir = tempfile::tempdir().unwrap();
        make_proc(dir.path(), &outside, &pod);
        fs::write(dir.path().join("token"), "token\n").unwrap();
        let agentd = RefCell::new(agentd(dir.path()));

        Self {
            agentd,
            outside,
            _pod: pod,
            dir,
        }
    }

    /// Runs in the namespace outside the pod.
    pub(crate) fn run(&self, test: impl Future<Output = ()>) {
        let entered = self.outside.open();
        // This thread is the test's own.
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(entered.as_fd(), network).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(test);
    }

    /// The agent, which knows one Intercept, one pod, and this manager.
    pub(crate) fn agent(&self, manager: &Manager) -> NodeAgent {
        self.agent_with(&[manager], facts())
    }

    pub(crate) fn agent_with(&self, managers: &[&Manager], facts: Facts) -> NodeAgent {
        let (_, facts) = watch::channel(facts);

        self.agent_following(managers, facts)
    }

    pub(crate) fn agent_following(
        &self,
        managers: &[&Manager],
        facts: watch::Receiver<Facts>,
    ) -> NodeAgent {
        let managers = managers.iter().enumerate();
        let managers = managers.map(|(at, it)| (format!("tp-manager-{at}"), it.address));
        let (_, managers) = watch::channel(managers.collect());
        let path = |name: &str| self.dir.path().join(name);

        let rules = Rules {
            excluded_names: vec!["EXCLUDED_*".parse().unwrap()],
            ..Rules::default()
        };

        NodeAgent::start(
            path("agentd.sock"),
            path("token"),
            rules,
            facts,
            managers,
            Box::new(Rights),
        )
        .unwrap()
    }

    /// The environment of the container's process.
    pub(crate) fn set_environ(&self, bytes: &[u8]) {
        fs::write(self.dir.path().join("100/environ"), bytes).unwrap();
    }

    pub(crate) fn replace_agentd(&self) {
        let mut program = self.agentd.borrow_mut();
        program.kill().unwrap();
        program.wait().unwrap();
        *program = agentd(self.dir.path());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let program = self.agentd.get_mut();
        let _ = program.kill();
        let _ = program.wait();
    }
}

impl Namespace {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));

        Self(name)
    }

    fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    fn run(&self, work: impl FnOnce() + Send) {
        let file = self.open();
        thread::scope(|scope| {
            scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work();
            });
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// The program of the same build.
fn agentd(dir: &Path) -> Child {
    let built = || {
        let own = env::current_exe().unwrap();
        own.ancestors().nth(2).unwrap().to_owned()
    };
    let folder = env::var_os("TP_BIN_DIR").map_or_else(built, PathBuf::from);

    Command::new(folder.join("tp-agentd"))
        .arg("--proc")
        .arg(dir)
        .arg("--socket")
        .arg(dir.join("agentd.sock"))
        .spawn()
        .expect("tp-agentd is built beside the tests")
}

/// One Intercept, and one pod of its workload.
pub(crate) fn facts() -> Facts {
    let workload = WorkloadKey {
        namespace: "shop".into(),
        kind: "StatefulSet".into(),
        name: "web".into(),
    };
    let intercept = InterceptFacts {
        workload: workload.clone(),
        created: 1,
        ports: BTreeSet::from([8080, 9999]),
        replica: None,
        has_local_probes: false,
        falls_back: false,
        takes_open: false,
    };
    let pod = PodFacts {
        name: "web-0".into(),
        created: 1,
        workloads: vec![workload],
        ids: PodIds {
            uid: UID.into(),
            containers: vec![ID.into()],
            addresses: vec!["10.77.0.2".parse().unwrap()],
        },
        addresses: vec!["10.77.0.2".parse().unwrap()],
        nodes: Vec::new(),
        probed: BTreeSet::new(),
        http_probed: BTreeSet::new(),
        obstacle: None,
    };

    Facts {
        intercepts: BTreeMap::from([(INTERCEPT.into(), intercept)]),
        pods: BTreeMap::from([(UID.into(), pod)]),
        reviews: BTreeMap::from([(INTERCEPT.into(), UserReview::Allowed)]),
    }
}

/// A node with one process of the pod's container.
fn make_proc(proc: &Path, node: &Namespace, pod: &Namespace) {
    let node_netns = format!("/run/netns/{}", node.0);
    let pod_netns = format!("/run/netns/{}", pod.0);
    let path = |uid: &str| {
        let uid = uid.replace('-', "_");
        format!("kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{ID}.scope")
    };
    for (process, cgroup, netns) in [
        ("1", "init.scope", node_netns.as_str()),
        ("self", &path(&"0".repeat(32)), "/proc/self/ns/net"),
        ("100", &path(UID), &pod_netns),
    ] {
        let dir = proc.join(process);
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("cgroup"), format!("0::/{cgroup}\n")).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(dir.join("stat"), format!("9 (x) S {zeros}5 0 0\n")).unwrap();
        symlink(netns, dir.join("ns/net")).unwrap();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

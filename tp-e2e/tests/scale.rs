//! A large cluster and a large company: the cost of 5,000 services and 300 sessions for one
//! manager.
//!
//! The sessions have objects, keys, tunnels and tables of their own, in this one process; their
//! byte streams begin where a port-forward ends, at the manager's port for the stream path.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    net::TcpStream,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tp_e2e::{
    batches::{Batch, in_batches},
    cluster::testbed,
    process::{PATIENCE, Running, run},
    sessions::{session_object, session_ref},
    user::Account,
    workstation::Workstation,
};
use tp_proto::{
    table::SnapshotAssembler,
    tunnel::{WatchTableRequest, manager_client::ManagerClient, table_event::Event},
};
use tp_transport::{Identity, KeyHash, PathChoice, SessionRef, Tunnel, TunnelConfig};

const NAMESPACES: usize = 25;
const SERVICES_IN_EACH: usize = 200;
const SERVICES: usize = NAMESPACES * SERVICES_IN_EACH;
const MAKERS: usize = 10;
const CREATE: [&str; 2] = ["create", "--validate=false"];
/// Each has a share of the sessions: a user's number of sessions is limited.
const USERS: usize = 3;
const FEW: usize = 20;
const MANY: usize = 300;
const CHANGES: usize = 10;
/// Tunnels that are opened at once.
const OPENED_AT_ONCE: usize = 20;

/// For every session to learn of a change; the manager gathers changes for 50 ms.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The manager's processor time for one change, with its other work.
const CPU_OF_CHANGE: Duration = Duration::from_millis(100);
/// Memory of a session without flows that has just received 5,000 services: half of it is the
/// tunnel itself, which a test of its crate measures.
const BYTES_OF_SESSION: usize = 132 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_and_many_sessions_cost_the_manager_what_changes() {
    testbed().install_tp();
    testbed().manager_ready();
    let workstation = Workstation::new(Account::Member, "dev");
    let _objects = Objects::make();
    let &[(manager, _)] = testbed().managers().as_slice() else {
        panic!("one manager is expected");
    };
    let mut company = Company::hire();

    company.open(FEW, manager).await;
    let few = resident_bytes(manager);
    company.open(MANY, manager).await;
    let many = resident_bytes(manager);
    let each = many.saturating_sub(few) / (MANY - FEW);
    println!("{each} bytes for a session, {many} bytes for {MANY}");

    let cpu = cpu_time(manager);
    for number in 0..CHANGES {
        let name = format!("e2e-news-{number}");
        let begun = Instant::now();
        let words = ["create", "service", "clusterip", &name, "--clusterip=None"];
        testbed().kubectl(&[&words[..], &["--namespace=e2e-scale-0"]].concat());
        company.all_hear_of(&name).await;
        println!("{:?} until everybody knows", begun.elapsed());
    }
    let cpu = cpu_time(manager).saturating_sub(cpu);
    println!("{cpu:?} of processor time for {CHANGES} changes");

    workstation.connect(&["--namespace", "shop"]);
    let script = "import socket; socket.create_connection(('web.shop', 80), 10)";
    workstation
        .run(&["/usr/bin/python3", "-c", script])
        .expect_success();
    workstation.tp(&["quit"]).expect_success();

    assert!(each <= BYTES_OF_SESSION, "{each} bytes for a session");
    let bound = CPU_OF_CHANGE * u32::try_from(CHANGES).unwrap();
    assert!(cpu <= bound, "{cpu:?} of processor time");
    let &[(same, _)] = testbed().managers().as_slice() else {
        panic!("one manager is expected");
    };
    assert_eq!(same, manager, "it was not replaced");
}

/// Services and rights of the test, deleted with the guard.
struct Objects;

impl Objects {
    fn make() -> Self {
        let objects = Self;
        let mut rights = vec![json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "e2e-scale"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tp-user",
            },
            "subjects": (0..USERS).map(|it| json!({
                "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user_name(it),
            })).collect::<Vec<_>>(),
        })];
        rights.extend((0..NAMESPACES).map(|it| {
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": namespace(it), "labels": {"e2e": "scale"}},
            })
        }));
        in_batches(1, &CREATE, &rights);
        let services: Vec<Value> = (0..SERVICES).map(service).collect();
        in_batches(MAKERS, &CREATE, &services);

        objects
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Deleting a namespace deletes its objects one by one.
        let namespaces: Vec<String> = (0..NAMESPACES).map(namespace).collect();
        for several in namespaces.chunks(MAKERS) {
            let of_each = several.iter().map(|it| {
                let path = format!("/api/v1/namespaces/{it}/services");
                Running::start(&mut testbed().kubectl_command(&["delete", "--raw", &path]))
            });
            let deletions: Vec<Running> = of_each.collect();
            for deletion in deletions {
                deletion.finish(PATIENCE);
            }
        }
        let words = [
            "delete",
            "namespace",
            "--selector=e2e=scale",
            "--timeout=30s",
        ];
        run(&mut testbed().kubectl_command(&words), PATIENCE);
        let words = ["delete", "clusterrolebinding", "e2e-scale"];
        run(&mut testbed().kubectl_command(&words), PATIENCE);
    }
}

fn namespace(number: usize) -> String {
    format!("e2e-scale-{number}")
}

fn user_name(number: usize) -> String {
    format!("e2e-scale-{number}")
}

/// One of ten has an address: the nodes' rules for more are not under test.
fn service(number: usize) -> Value {
    let mut spec = json!({"ports": [{"port": 80}]});
    if !number.is_multiple_of(10) {
        spec["clusterIP"] = json!("None");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("e2e-{number}"), "namespace": namespace(number % NAMESPACES)},
        "spec": spec,
    })
}

/// All users, connected or about to be.
struct Company {
    manager_key: KeyHash,
    sessions: Vec<(SessionRef, Identity)>,
    open: usize,
    /// Keep the tunnels.
    people: JoinSet<()>,
    heard_tx: mpsc::Sender<String>,
    heard: mpsc::Receiver<String>,
}

impl Company {
    /// Creates the Session of each, as its user.
    fn hire() -> Self {
        let manager_key = testbed().manager_key().parse().unwrap();
        let sessions = (0..USERS).flat_map(sessions_of).collect();
        let (heard_tx, heard) = mpsc::channel(MANY);

        Self {
            manager_key,
            sessions,
            open: 0,
            people: JoinSet::new(),
            heard_tx,
            heard,
        }
    }

    /// Opens tunnels until there are `count`, each with the whole table.
    async fn open(&mut self, count: usize, manager: u32) {
        while self.open < count {
            let next = (self.open + OPENED_AT_ONCE).min(count);
            let links = links(manager, next - self.open);
            for (link, index) in links.into_iter().zip(self.open..next) {
                let (session, identity) = self.sessions[index].clone();
                let config = TunnelConfig {
                    identity,
                    session,
                    manager_key: self.manager_key,
                    choice: PathChoice::StreamOnly,
                };
                self.people.spawn(work(link, config, self.heard_tx.clone()));
            }
            for _ in self.open..next {
                assert_eq!(self.next_word(PATIENCE).await, WHOLE);
            }
            self.open = next;
        }
    }

    /// Waits until each session has received a service.
    async fn all_hear_of(&mut self, service: &str) {
        let end = Instant::now() + ARRIVAL_TIMEOUT;
        for _ in 0..self.open {
            let left = end.saturating_duration_since(Instant::now());
            assert_eq!(self.next_word(left).await, service);
        }
    }

    async fn next_word(&mut self, bound: Duration) -> String {
        tokio::select! {
            heard = timeout(bound, self.heard.recv()) => {
                heard.expect("every session hears in time").expect("there is a sender here")
            }
            Some(ended) = self.people.join_next() => panic!("a session ended: {ended:?}"),
        }
    }
}

impl Drop for Company {
    fn drop(&mut self) {
        // The tasks would panic when their session ends.
        self.people.abort_all();
        let path = "/apis/tp.internal/v1alpha1/namespaces/shop/sessions";
        let words = ["delete", "--raw", path];
        run(&mut testbed().kubectl_command(&words), PATIENCE);
    }
}

fn sessions_of(number: usize) -> Vec<(SessionRef, Identity)> {
    let name = user_name(number);
    let flags = ["--as", name.as_str()];
    let user = testbed().whoami("admin", &flags);
    let share = 0..MANY / USERS;
    let keys: Vec<Identity> = share.map(|_| Identity::generate().unwrap()).collect();
    let objects: Vec<Value> = keys
        .iter()
        .map(|key| session_object("shop", &user, &key.key_hash().to_string()))
        .collect();
    let made = Batch::start(
        &[&CREATE[..], &["--output=json"], &flags].concat(),
        &objects,
    )
    .finish();
    // kubectl prints a sequence of objects, or a list of them.
    let made: Vec<Value> = serde_json::Deserializer::from_str(&made)
        .into_iter::<Value>()
        .flat_map(|object| match object.unwrap() {
            Value::Object(list) if list["kind"] == "List" => {
                list["items"].as_array().unwrap().clone()
            }
            object => vec![object],
        })
        .collect();
    assert_eq!(made.len(), keys.len());

    made.iter().map(session_ref).zip(keys).collect()
}

/// Connections to the port for the stream path, made in the network namespace of the manager's pod.
fn links(manager: u32, count: usize) -> Vec<tokio::net::TcpStream> {
    let entered = thread::spawn(move || {
        let namespace = fs::File::open(format!("/proc/{manager}/ns/net")).unwrap();
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).unwrap();
        let links = (0..count).map(|_| TcpStream::connect(("127.0.0.1", 7070)).unwrap());
        links.collect::<Vec<_>>()
    });
    let links = entered.join().unwrap().into_iter().map(|link| {
        link.set_nonblocking(true).unwrap();
        tokio::net::TcpStream::from_std(link).unwrap()
    });

    links.collect()
}

/// The kernel reports times in hundredths of a second (USER_HZ).
const MS_OF_TICK: u64 = 10;

const WHOLE: &str = "the whole table";

/// One session: reports the whole table, then the name of each changed service.
async fn work(link: tokio::net::TcpStream, config: TunnelConfig, heard: mpsc::Sender<String>) {
    let tunnel = Tunnel::connect(link, config).await.unwrap();
    let channel = tunnel.open_control().await.unwrap();
    let mut manager = ManagerClient::new(channel.into_channel().await.unwrap());
    let events = manager.watch_table(WatchTableRequest {}).await.unwrap();
    let (mut events, mut parts) = (events.into_inner(), SnapshotAssembler::default());
    while let Some(event) = events.message().await.unwrap() {
        match event.event.and_then(|event| parts.take(event)) {
            Some(Event::Snapshot(table)) => {
                assert!(table.services.len() >= SERVICES, "{}", table.services.len());
                heard.send(WHOLE.to_owned()).await.unwrap();
            }
            Some(Event::ServiceApplied(service)) if service.name.starts_with("e2e-news-") => {
                heard.send(service.name).await.unwrap();
            }
            _ => {}
        }
    }
}

fn resident_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");

    kilobytes.parse::<usize>().unwrap() << 10
}

/// Processor time of all its threads, in user and kernel mode.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // Fields 14 and 15 of the line, without the first two (proc_pid_stat(5)).
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();

    Duration::from_millis(ticks * MS_OF_TICK)
}

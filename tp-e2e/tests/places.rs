//! Destinations and users of `tp connect` beyond the kubeconfig's current context: other networks,
//! another cluster and user, a token, the service account of a pod.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tp_e2e::{
    applied::Robot,
    cluster::{testbed, text},
    far_host::{ADDED, FarHost},
    files::read_json,
    process::{PATIENCE, eventually, run},
    user::Account,
    workstation::Workstation,
};

#[test]
fn also_proxy_steers_an_added_network_and_without_it_nothing_is_steered_there() {
    let mut beyond = FarHost::with_pages();
    let target = format!("{ADDED}:7998");
    let workstation = Workstation::new(Account::Root, "admin");
    let reached = || workstation.echo(&["connect", "-timeout", "2s", &target])["error"] == "";

    workstation.connect(&["--namespace", "shop"]);
    let without = reached();
    workstation.tp(&["quit"]).expect_success();
    workstation.connect(&["--namespace", "shop", "--also-proxy", "10.77.0.0/24"]);
    eventually("the added network", Duration::from_secs(10), || {
        if reached() {
            Ok(())
        } else {
            Err("not reached".into())
        }
    });
    let page = workstation
        .run(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            &format!("http://{target}/"),
        ])
        .expect_success();

    assert!(!without, "{target} is reached without the flag");
    assert!(page.contains("Directory listing"), "{page}");
    // The request came from the cluster, not from this machine.
    beyond.server.wait_for("10.244.", Duration::from_secs(5));
}

#[test]
fn cluster_and_user_flags_replace_those_of_the_context() {
    let workstation = Workstation::new(Account::Member, "dev");
    let mut config = read_json(&testbed().kubeconfig("dev"));
    let limited = read_json(&testbed().kubeconfig("limited"))["users"][0]["user"].take();
    let users = config["users"].as_array_mut().unwrap();
    users.push(json!({"name": "nobody", "user": {"token": "wrong"}}));
    users.push(json!({"name": "other", "user": limited}));
    let away = json!({"name": "away", "cluster": {"server": "https://172.30.0.99:6443"}});
    config["clusters"].as_array_mut().unwrap().push(away);
    config["contexts"][0]["context"] = json!({"cluster": "away", "user": "nobody"});
    let path = workstation.write_file("made.conf", &config.to_string());
    let flags = [
        "--namespace",
        "team-b",
        "--cluster",
        "testbed",
        "--user",
        "other",
    ];

    workstation.connect(&[&flags[..], &["--kubeconfig", path.to_str().unwrap()]].concat());

    let status = workstation.status();
    assert_eq!(status["user"], "limited", "{status}");
    assert_eq!(status["server"], "https://172.30.0.11:6443", "{status}");
    let seen = workstation.echo(&["talk", "echo:7001", "peer"]);
    assert_eq!(seen["end"], "fin", "{seen}");
}

/// The kubelet mounts a pod's service account here; this test does it in its own mount namespace.
const MOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// Makes the mount point, and removes the folders it made.
struct MountPoint(Vec<&'static Path>);

impl MountPoint {
    fn make() -> Self {
        let missing = Path::new(MOUNT).ancestors().take_while(|it| !it.exists());
        let missing = missing.collect();
        fs::create_dir_all(MOUNT).unwrap();
        Self(missing)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[test]
fn without_a_kubeconfig_the_service_account_of_a_pod_connects() {
    let workstation = Workstation::new(Account::Root, "admin");
    let robot = Robot::make("e2e-token");
    let _mount = MountPoint::make();
    let account = TempDir::new().unwrap();
    let authority = testbed().object("shop", "configmap", "kube-root-ca.crt");
    for (name, content) in [
        ("token", robot.token()),
        ("namespace", "shop".to_owned()),
        ("ca.crt", text(&authority["data"]["ca.crt"])),
    ] {
        fs::write(account.path().join(name), content).unwrap();
    }
    let script = format!("mount --bind \"$0\" {MOUNT} && exec tp connect");
    let mut connect = workstation.command(&["sh", "-c", &script, account.path().to_str().unwrap()]);
    connect
        .env_remove("KUBECONFIG")
        .env("KUBERNETES_SERVICE_HOST", "172.30.0.11")
        .env("KUBERNETES_SERVICE_PORT", "6443");

    run(&mut connect, PATIENCE).expect_success();

    let status = workstation.status();
    assert_eq!(status["user"], robot.user(), "{status}");
    assert_eq!(status["namespace"], "shop", "{status}");
    let page = workstation.read_web();
    assert!(page.contains("nginx of"), "{page}");
}

/// Returns whether the memory of a process holds these bytes.
fn memory_holds(pid: u32, bytes: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines()
        .filter(|line| {
            line.split(' ')
                .nth(1)
                .is_some_and(|it| it.starts_with("rw"))
        })
        .any(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [from, to] = [from, to].map(|it| u64::from_str_radix(it, 16).unwrap());
            let mut region = Vec::new();
            // A mapping may go while it is read.
            memory.seek(SeekFrom::Start(from)).is_ok()
                && (&memory).take(to - from).read_to_end(&mut region).is_ok()
                && region.windows(bytes.len()).any(|window| window == bytes)
        })
}

#[test]
fn a_token_of_the_user_never_reaches_the_manager() {
    let workstation = Workstation::new(Account::Member, "dev");
    let robot = Robot::make("e2e-token");
    let token = robot.token();
    let mut config = read_json(&testbed().kubeconfig("dev"));
    config["users"][0]["user"] = json!({"token": token});
    let path = workstation.write_file("made.conf", &config.to_string());

    workstation.connect(&[
        "--namespace",
        "shop",
        "--kubeconfig",
        path.to_str().unwrap(),
    ]);

    assert_eq!(workstation.status()["user"], robot.user());
    workstation.read_web();
    // The last of three parts is the signature, without which a token is worthless.
    let signature = token.rsplit('.').next().unwrap().as_bytes().to_vec();
    for (pid, pod) in testbed().managers() {
        assert!(
            memory_holds(pid, robot.user().as_bytes()),
            "{pod}: the search finds what is there"
        );
        assert!(!memory_holds(pid, &signature), "{pod} knows the token");
    }
    // The session has it: the search works.
    assert!(memory_holds(workstation.session_pid(), &signature));
}

/// Files of a directory tree, with their owners.
fn owners(directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    let found = run(
        std::process::Command::new("find").args([&directory, "-printf", "%p %U\\n"]),
        PATIENCE,
    );
    let mut lines: Vec<String> = found.stdout.lines().map(str::to_owned).collect();
    lines.sort();

    lines
}

#[test]
fn root_with_the_environment_of_a_user_leaves_nothing_in_their_directories() {
    let workstation = Workstation::new(Account::Member, "dev");
    let run_directory = workstation.home().join("run");
    let before = owners(workstation.home());
    let tp = |words: &[&str]| {
        let mut command = workstation.command_as(Account::Root, &[&["tp"], words].concat());
        command.env_remove("TP_STATE_DIR");
        run(&mut command, PATIENCE)
    };

    tp(&["connect", "--namespace", "shop"]).expect_success();
    tp(&["quit"]).expect_success();

    assert_eq!(owners(workstation.home()), before);
    assert!(run_directory.is_dir(), "the variable led there");
    workstation.connect(&["--namespace", "shop"]);
}

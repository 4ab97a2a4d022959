//! Whatever dies or comes back, exactly the right pods are intercepted, and no pod is restarted.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tp_e2e::{
    cluster::{Impairment, testbed, text},
    process::{PATIENCE, eventually, kill_if_there, run, signal},
    workstation::Workstation,
};

use super::support::{
    CHANGE, FROM_WORKSTATION, Handler, LEASE, Target, ask, ask_for_code, ask_soon, connected,
    expect_pod, expect_pod_after_lease, expect_workstation,
};

/// For pods of the cluster's own, and of tp, to be replaced.
const REPLACED: Duration = Duration::from_secs(60);

/// An intercept of a deployment whose name has the number of its local port.
struct Scene {
    target: Target,
    workstation: Workstation,
    handler: Handler,
}

impl Scene {
    #[track_caller]
    fn new(name: &'static str, replicas: u32, port: u16) -> Self {
        let target = Target::new(name, replicas);
        let workstation = connected();
        let handler = Handler::start(&workstation, port);
        let port = format!("{port}:http");
        workstation
            .tp(&["intercept", name, "--port", &port])
            .expect_success();
        for url in target.pod_urls() {
            assert_eq!(ask(&url).stdout, FROM_WORKSTATION, "{url}");
        }

        Self {
            target,
            workstation,
            handler,
        }
    }

    /// Waits until each pod that there is leads to the workstation.
    #[track_caller]
    fn expect_all(&self, replicas: usize) {
        eventually("each pod to be intercepted", REPLACED, || {
            let urls = self.target.pod_urls();
            match urls.len() == replicas
                && urls.iter().all(|url| ask(url).stdout == FROM_WORKSTATION)
            {
                true => Ok(()),
                false => Err(format!("{urls:?}")),
            }
        });
    }
}

#[track_caller]
fn pods_of_tp(namespace: &str, component: &str) -> String {
    let selector = format!("--selector=app.kubernetes.io/component={component}");
    let namespace = format!("--namespace={namespace}");

    testbed().kubectl(&["get", "pods", &namespace, &selector, "--output=name"])
}

#[test]
fn an_intercept_comes_back_after_its_manager_was_replaced() {
    let mut scene = Scene::new("e2e-manager", 2, 18100);
    scene.workstation.may_warn();

    testbed().replace_manager();

    scene.expect_all(2);
    assert_eq!(scene.target.restarts(), 0);
}

#[test]
fn an_intercept_comes_back_after_the_agents_were_replaced() {
    let scene = Scene::new("e2e-agents", 2, 18101);
    let before = pods_of_tp("tp-agents", "agent");

    testbed().kubectl(&["delete", "pods", "--all", "--namespace=tp-agents"]);

    eventually("other agents", REPLACED, || {
        let now = pods_of_tp("tp-agents", "agent");
        match now.lines().count() == before.lines().count()
            && now.lines().all(|pod| !before.contains(pod))
        {
            true => Ok(()),
            false => Err(now),
        }
    });
    scene.expect_all(2);
    assert_eq!(scene.target.restarts(), 0);
}

#[test]
fn the_pods_serve_while_there_are_no_agents() {
    let scene = Scene::new("e2e-no-agents", 2, 18102);
    let daemonset = ["daemonset/tp-agent", "--namespace=tp-agents"];
    let nobody = r#"{"spec":{"template":{"spec":{"nodeSelector":{"e2e":"nobody"}}}}}"#;

    testbed().kubectl(&[&["patch"], &daemonset[..], &["--patch", nobody]].concat());
    eventually("the agents to be gone", REPLACED, || {
        match pods_of_tp("tp-agents", "agent") {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        }
    });
    let served = scene.target.pod_urls();
    served.iter().for_each(|url| expect_pod_after_lease(url));
    let everywhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"e2e":null}}}}}"#;
    testbed().kubectl(&[&["patch"], &daemonset[..], &["--patch", everywhere]].concat());

    scene.expect_all(2);
    assert_eq!(scene.target.restarts(), 0);
}

#[test]
fn a_rollout_and_a_scaling_leave_exactly_the_new_pods_intercepted() {
    let scene = Scene::new("e2e-rollout", 2, 18103);
    let deployment = "deployment/e2e-rollout";

    testbed().kubectl(&["rollout", "restart", deployment, "--namespace=shop"]);
    scene.target.wait_for_rollout();
    scene.expect_all(2);
    for replicas in [0, 4, 1] {
        let flag = format!("--replicas={replicas}");
        testbed().kubectl(&["scale", deployment, &flag, "--namespace=shop"]);
        scene.target.wait_for_rollout();
        scene.expect_all(replicas);
    }
}

#[test]
fn the_pods_serve_while_the_workstation_is_away_and_it_has_them_when_it_is_back() {
    let mut scene = Scene::new("e2e-away", 1, 18104);
    scene.workstation.may_warn();
    let url = scene.target.url();

    let away = testbed().impair(Impairment::NothingPasses);
    expect_pod_after_lease(&url);
    drop(away);

    expect_workstation(&url);
    assert_eq!(scene.target.restarts(), 0);
}

#[test]
fn a_stopped_handler_harms_neither_other_intercepts_nor_the_connection() {
    let scene = Scene::new("e2e-stopped", 1, 18105);
    let other = Target::new("e2e-beside", 1);
    let _handler = Handler::start(&scene.workstation, 18106);
    scene
        .workstation
        .tp(&["intercept", "e2e-beside", "--port", "18106:http"])
        .expect_success();
    let (stuck, url) = (scene.target.url(), other.url());

    signal(scene.handler.pid(), Signal::STOP);
    let refused = ask(&stuck);
    // curl's code for a time that is over.
    assert_eq!(refused.code(), 28, "{refused}");
    assert_eq!(ask(&url).stdout, FROM_WORKSTATION);
    let page = scene
        .workstation
        .run(&["curl", "-sS", "--max-time", "5", "http://web/"]);
    page.expect_success();
    signal(scene.handler.pid(), Signal::CONT);

    expect_workstation(&stuck);
}

#[test]
fn a_handler_that_only_fails_leaves_the_pod_ready() {
    let target = Target::new("e2e-failing", 1);
    let probe = r#"{"httpGet":{"path":"/","port":"http"},"periodSeconds":1,"failureThreshold":3}"#;
    let probes = format!(
        r#"{{"spec":{{"template":{{"spec":{{"containers":[{{"name":"echo","livenessProbe":{probe},
        "readinessProbe":{{"tcpSocket":null,"httpGet":{{"path":"/","port":"http"}}}}}}]}}}}}}}}"#
    );
    let deployment = "deployment/e2e-failing";
    testbed().kubectl(&["patch", deployment, "--namespace=shop", "--patch", &probes]);
    target.wait_for_rollout();
    let workstation = connected();
    let _handler = Handler::failing(&workstation, 18107);

    workstation
        .tp(&["intercept", "e2e-failing", "--port", "18107:http"])
        .expect_success();

    let begun = Instant::now();
    let url = target.url();
    eventually("twenty probes", REPLACED, || {
        // A client of the same address as the kubelet's, and others too, have what the handler says.
        assert_eq!(ask_for_code(&url), "500");
        let pods = target.pods();
        let conditions = pods[0]["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.find(|it| it["type"] == "Ready");
        assert_eq!(ready.map(|it| text(&it["status"])).as_deref(), Some("True"));
        match begun.elapsed() > Duration::from_secs(20) {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    });
    assert_eq!(target.restarts(), 0);
}

/// Listening sockets in the network namespace of the target's first container, and the eBPF programs
/// attached to it, whoever holds them.
#[track_caller]
fn traces(target: &Target) -> String {
    let uid = text(&target.pods()[0]["metadata"]["uid"]);
    let find = format!(
        "for cgroup in /proc/[0-9]*/cgroup; do grep -q 'pod{uid}' $cgroup 2>/dev/null && \
         {{ basename $(dirname $cgroup); exit; }}; done; exit 1"
    );
    let pid = run(
        std::process::Command::new("sh").args(["-c", &find]),
        PATIENCE,
    )
    .expect_success();
    let net = format!("--net=/proc/{}/ns/net", pid.trim());
    let mut listeners = std::process::Command::new("nsenter");
    listeners.args([&net, "ss", "-Hltn"]);
    let listeners = run(&mut listeners, PATIENCE).expect_success();
    let ports = listeners
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    let mut ports: Vec<&str> = ports.collect();
    ports.sort_unstable();

    format!("{}; programs: {}", ports.join(" "), programs(pid.trim()))
}

/// Links of eBPF programs to the network namespace of this process.
#[track_caller]
fn programs(pid: &str) -> usize {
    let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).expect("the process runs");
    let namespace = namespace.to_string_lossy();
    let inode = namespace.trim_matches(|c: char| !c.is_ascii_digit());
    let line = format!("netns_ino:\t{inode}");
    let of_process = |process: fs::DirEntry| fs::read_dir(process.path().join("fdinfo")).ok();
    let processes = fs::read_dir("/proc").expect("there is one").flatten();
    let fds = processes.filter_map(of_process).flatten().flatten();
    // They may end meanwhile.
    let infos = fds.filter_map(|fd| fs::read_to_string(fd.path()).ok());

    infos
        .filter(|info| info.lines().any(|it| it == line))
        .count()
}

/// Rounds of a test, of which `cargo xtask soak` wants more.
fn rounds(usual: usize) -> usize {
    let text = std::env::var("TP_ROUNDS").ok();

    text.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Private memory of all processes of tp that have this name, in KiB.
#[track_caller]
fn memory(name: &str) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };

    testbed().processes(name).into_iter().filter_map(of).sum()
}

#[test]
fn cycles_leave_nothing_in_the_pod_and_let_nothing_grow() {
    const PROGRAMS: [&str; 3] = ["tp-agent", "tp-agentd", "tp-manager"];
    /// In KiB. The allocator keeps what aya needs for a moment, the types of the kernel.
    const SLACK: u64 = 16 << 10;

    let target = Target::new("e2e-traces", 1);
    let before = traces(&target);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18108);
    let url = target.url();
    let cycle = || {
        workstation
            .tp(&["intercept", "e2e-traces", "--port", "18108:http"])
            .expect_success();
        assert_eq!(ask(&url).stdout, FROM_WORKSTATION);
    };
    let leave = || {
        workstation.tp(&["leave", "e2e-traces"]).expect_success();
        expect_pod(&url);
    };

    for _ in 0..10 {
        cycle();
        let during = traces(&target);
        assert!(during.ends_with("programs: 1"), "{during}");
        assert_ne!(during, before);
        leave();
    }
    let at_first = PROGRAMS.map(memory);
    for _ in 0..rounds(50) {
        cycle();
        leave();
    }

    eventually("the pod to be as before", CHANGE, || {
        let now = traces(&target);
        if now == before { Ok(()) } else { Err(now) }
    });
    for (program, first) in PROGRAMS.into_iter().zip(at_first) {
        let now = memory(program);
        assert!(
            now < first + SLACK,
            "{program}: {first} KiB, then {now} KiB"
        );
    }
    assert_eq!(target.restarts(), 0);
}

/// What is killed.
const VICTIMS: [&str; 3] = ["tp-agent", "tp-agentd", "tp-manager"];

#[test]
fn kills_of_any_part_under_load_never_keep_the_traffic_for_longer_than_a_lease() {
    let mut scene = Scene::new("e2e-kills", 2, 18109);
    scene.workstation.may_warn();
    let url = scene.target.url();
    let seed = fastrand::u64(..);
    fastrand::seed(seed);
    for round in 0..rounds(5) {
        let victim = VICTIMS[fastrand::usize(..VICTIMS.len())];
        println!("round {round} of seed {seed}: {victim}");
        for pid in testbed().processes(victim) {
            kill_if_there(pid, Signal::KILL);
        }

        eventually("an answer of somebody", LEASE, || {
            let answer = ask_soon(&url);
            match answer.status.success() {
                true => Ok(()),
                false => Err(answer.to_string()),
            }
        });
        // A fresh pod waits for no back-off of the kubelet.
        let (namespace, component) = match victim {
            "tp-manager" => ("tp-system", "manager"),
            _ => ("tp-agents", "agent"),
        };
        let selector = format!("--selector=app.kubernetes.io/component={component}");
        testbed().kubectl(&["delete", "pods", "--namespace", namespace, &selector]);
        testbed().manager_ready();
        scene.expect_all(2);
    }
    assert_eq!(scene.target.restarts(), 0);
}

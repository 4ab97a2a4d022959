//! The agent with the real tp-agentd and the manager's end of its connections: what happens in a pod
//! when an Intercept comes, goes, or loses its manager. Each test has network namespaces of its own, and
//! a pod below a made-up `/proc`; facts take the place of the API server.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tp_agent::{NodeAgent, facts::PodFacts};
use tp_proto::{
    agent::{PodPhase, PodReport},
    tunnel::Outcome,
};

use crate::{
    manager::{INTERCEPT, Manager},
    stage::{CONTAINER, Stage},
};

#[path = "node/earlier.rs"]
mod earlier;
#[path = "node/environment.rs"]
mod environment;
#[path = "node/manager.rs"]
mod manager;
#[path = "node/stage.rs"]
mod stage;

const LIMIT: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_millis(500);
const POD4: &str = "10.77.0.2:8080";
const POD6: &str = "[fd77::2]:8080";

const PROBE: &str = "GET /healthz HTTP/1.1\r\nHost: web\r\nUser-Agent: kube-probe/1.35\r\n\r\n";

/// Connects, sends something, and reads until the end.
async fn ask(to: &str) -> io::Result<String> {
    send(to, "hello").await
}

async fn send(to: &str, request: &str) -> io::Result<String> {
    let asked = async {
        let mut client = TcpStream::connect(to).await?;
        client.write_all(request.as_bytes()).await?;
        client.shutdown().await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        Ok(answer)
    };

    timeout(LIMIT, asked).await.unwrap()
}

/// A connection that the workstation takes.
async fn is_carried(manager: &mut Manager, to: &str) {
    let address = to.to_owned();
    let client = tokio::spawn(async move { ask(&address).await });
    let incoming = manager.incoming().await;
    assert_eq!(incoming.from.intercept, INTERCEPT);
    assert_eq!(incoming.from.pod, to.parse().unwrap());
    let client_address = if incoming.from.pod.is_ipv4() {
        "10.77.0.1"
    } else {
        "fd77::1"
    };
    assert_eq!(incoming.from.client.ip().to_string(), client_address);
    assert_eq!(incoming.pod, stage::UID);

    let mut flow = incoming.accept().await.unwrap();
    let mut sent = String::new();
    flow.read_to_string(&mut sent).await.unwrap();
    assert_eq!(sent, "hello");
    flow.write_all(b"workstation").await.unwrap();
    flow.shutdown().await.unwrap();
    assert_eq!(client.await.unwrap().unwrap(), "workstation");
}

/// Connects until the answer is this one, for a while.
async fn is_soon(to: &str, wanted: impl Fn(&io::Result<String>) -> bool) {
    let polled = async {
        loop {
            // Until the change, the workstation would be waited for.
            let answer = timeout(ATTEMPT, ask(to)).await;
            let answer = answer.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
            if wanted(&answer) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };

    timeout(LIMIT, polled).await.unwrap();
}

fn is_container(answer: &io::Result<String>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer == CONTAINER)
}

fn is_refused(answer: &io::Result<String>) -> bool {
    let kind = answer.as_ref().err().map(io::Error::kind);

    kind == Some(io::ErrorKind::ConnectionRefused)
}

fn is_redirected(report: &PodReport) -> bool {
    report.phase() == PodPhase::Redirected && report.reason.is_empty()
}

/// An agent with its manager, which has leased port 8080 and heard that it is redirected.
async fn redirected(stage: &Stage) -> (Manager, NodeAgent) {
    let mut manager = Manager::start().await;
    let agent = stage.agent(&manager);
    manager.lease(&[(8080, true)]);
    manager.report(is_redirected).await;

    (manager, agent)
}

#[test]
#[ignore = "needs root"]
fn a_leased_port_goes_to_the_workstation_until_its_release() {
    let stage = Stage::new("a");
    stage.run(async {
        let mut manager = Manager::start().await;
        let agent = stage.agent(&manager);
        assert_eq!(ask(POD4).await.unwrap(), CONTAINER);

        manager.lease(&[(8080, true)]);
        let report = manager.report(is_redirected).await;
        assert_eq!(report.name, "web-0");
        assert_eq!(report.ports[0].to_workstation, 0, "a proof is not counted");
        is_carried(&mut manager, POD4).await;
        is_carried(&mut manager, POD6).await;
        manager
            .report(|report| report.ports[0].to_workstation == 2)
            .await;

        let client = tokio::spawn(ask(POD4));
        let incoming = manager.incoming().await;
        incoming.refuse(Outcome::Refused, "nobody listens").await;
        let error = client.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let client = TcpStream::connect(POD4).await.unwrap();
        let mut incoming = manager.incoming().await;
        // It is reset.
        let lingering = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        lingering.unwrap();
        drop(client);
        timeout(LIMIT, incoming.cancelled()).await.unwrap();

        manager.lease(&[(8080, false)]);
        is_soon(POD4, is_refused).await;
        manager.report(|report| report.ports[0].refused > 0).await;

        manager.lease(&[]);
        let released = |report: &PodReport| report.phase() == PodPhase::Released;
        manager.report(released).await;
        assert_eq!(ask(POD4).await.unwrap(), CONTAINER);
        agent.close().await;
    });
}

#[test]
#[ignore = "needs root"]
fn ports_come_and_go_and_the_others_stay() {
    let stage = Stage::new("h");
    stage.run(async {
        let (mut manager, _agent) = redirected(&stage).await;
        is_carried(&mut manager, POD4).await;

        // Nobody listens there in the container.
        manager.lease(&[(8080, true), (9999, true)]);
        let report = manager.report(|report| report.ports.len() == 2).await;
        assert!(is_redirected(&report));
        is_carried(&mut manager, "10.77.0.2:9999").await;
        is_carried(&mut manager, POD4).await;
        let two = |report: &PodReport| report.ports[0].to_workstation == 2;
        manager.report(two).await;

        manager.lease(&[(9999, true)]);
        manager.report(|report| report.ports.len() == 1).await;
        assert_eq!(ask(POD4).await.unwrap(), CONTAINER);
        is_carried(&mut manager, "10.77.0.2:9999").await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_quiet_session_leaves_the_pod_to_the_container_and_comes_back_to_the_same_redirect() {
    let stage = Stage::new("j");
    stage.run(async {
        let (mut manager, _agent) = redirected(&stage).await;
        is_carried(&mut manager, POD4).await;

        manager.lease_quietly(&[(8080, true)]);
        let begun = Instant::now();
        is_soon(POD4, is_container).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "at once");
        while manager.incoming.try_recv().is_ok() {}

        manager.lease(&[(8080, true)]);
        let begun = Instant::now();
        let asking = async {
            loop {
                drop(timeout(ATTEMPT, ask(POD4)).await);
            }
        };
        tokio::select! {
            incoming = manager.incoming() => drop(incoming),
            () = asking => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(1));
        is_carried(&mut manager, POD4).await;
        // Of one redirect, from its first connection on.
        let goes_on = |report: &PodReport| {
            assert_eq!(report.phase(), PodPhase::Redirected);
            report.ports[0].to_workstation >= 3 && report.ports[0].to_container >= 1
        };
        manager.report(goes_on).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_new_pod_joins_within_a_second() {
    let stage = Stage::new("l");
    stage.run(async {
        let mut manager = Manager::start().await;
        let mut known = stage::facts();
        let pods = std::mem::take(&mut known.pods);
        let (facts, following) = watch::channel(known);
        let _agent = stage.agent_following(&[&manager], following);
        manager.lease(&[(8080, true)]);
        // Until its container runs, it cannot join.
        let mut created = pods.clone();
        let containers = |pods: &mut BTreeMap<String, PodFacts>| {
            std::mem::take(&mut pods.get_mut(stage::UID).unwrap().ids.containers)
        };
        containers(&mut created);
        facts.send_modify(|facts| facts.pods = created);
        let is_down = |report: &PodReport| report.reason.contains("no container");
        manager.report(is_down).await;

        let begun = Instant::now();
        facts.send_modify(|facts| facts.pods = pods);
        manager.report(is_redirected).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        println!("A new pod joins in {took:?}");
        is_carried(&mut manager, POD4).await;
    });
}

#[test]
#[ignore = "needs root"]
fn http_probes_reach_the_container_whatever_the_workstation_does() {
    let stage = Stage::new("k");
    stage.run(async {
        let mut manager = Manager::start().await;
        let mut facts = stage::facts();
        let pod = facts.pods.get_mut(stage::UID).unwrap();
        pod.http_probed = [8080, 9999].into();
        pod.nodes = ["10.77.0.1", "fd77::1"]
            .map(|it| it.parse().unwrap())
            .into();
        let _agent = stage.agent_with(&[&manager], facts);
        manager.lease(&[(8080, true), (9999, true)]);
        manager.report(is_redirected).await;

        // The application sees its pod's own address, and the whole request.
        let answer = |address: &str| format!("{CONTAINER} {address} {}", PROBE.len());
        assert_eq!(send(POD4, PROBE).await.unwrap(), answer("10.77.0.2"));
        assert_eq!(send(POD6, PROBE).await.unwrap(), answer("fd77::2"));
        // Nobody listens there.
        let error = send("10.77.0.2:9999", PROBE).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        is_carried(&mut manager, POD4).await;
        let other = PROBE.replace("kube-probe", "curl");
        let asked = other.clone();
        let client = tokio::spawn(async move { send(POD4, &asked).await });
        let mut flow = manager.incoming().await.accept().await.unwrap();
        let mut sent = String::new();
        flow.read_to_string(&mut sent).await.unwrap();
        assert_eq!(sent, other);
        flow.shutdown().await.unwrap();
        client.await.unwrap().unwrap();
        // The server speaks first.
        let mut client = TcpStream::connect(POD4).await.unwrap();
        let mut flow = manager.incoming().await.accept().await.unwrap();
        flow.write_all(b"welcome").await.unwrap();
        flow.flush().await.unwrap();
        let mut welcome = [0; 7];
        client.read_exact(&mut welcome).await.unwrap();
        assert_eq!(&welcome, b"welcome");
        let is_counted = |report: &PodReport| {
            let counted = &report.ports[0];
            assert!(counted.to_workstation <= 3, "{counted:?}");
            (counted.to_workstation, counted.exempt) == (3, 2)
        };
        manager.report(is_counted).await;

        for is_listening in [false, true, false, true] {
            manager.lease(&[(8080, is_listening)]);
            for _ in 0..50 {
                let answered = send(POD4, PROBE).await.unwrap();
                assert!(answered.starts_with(CONTAINER));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn what_the_manager_leaves_to_the_container_is_served_by_it_whole() {
    let stage = Stage::new("m");
    stage.run(async {
        let (mut manager, _agent) = redirected(&stage).await;
        for (to, pod) in [(POD4, "10.77.0.2"), (POD6, "fd77::2")] {
            let request = format!("GET /{}", "x".repeat(1 << 20));
            let length = request.len();
            let client = tokio::spawn(async move { send(to, &request).await });
            let incoming = manager.incoming().await;
            // The client has sent what fits meanwhile.
            tokio::time::sleep(Duration::from_millis(100)).await;
            incoming.leave_to_container("").await;

            // The application sees its pod's own address.
            let answer = client.await.unwrap().unwrap();
            assert_eq!(answer, format!("{CONTAINER} {pod} {length}"));
        }
        let is_counted = |report: &PodReport| {
            let counted = &report.ports[0];
            (counted.to_workstation, counted.exempt) == (0, 2)
        };
        manager.report(is_counted).await;
        is_carried(&mut manager, POD4).await;

        // Nobody listens there.
        manager.lease(&[(8080, true), (9999, true)]);
        manager.report(|report| report.ports.len() == 2).await;
        let client = tokio::spawn(ask("10.77.0.2:9999"));
        manager.incoming().await.leave_to_container("").await;
        let error = client.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
#[ignore = "needs root"]
fn an_intercept_follows_its_session_to_another_manager() {
    let stage = Stage::new("i");
    stage.run(async {
        let (mut first, mut second) = (Manager::start().await, Manager::start().await);
        let _agent = stage.agent_with(&[&first, &second], stage::facts());
        first.lease(&[(8080, true)]);
        first.report(is_redirected).await;
        second.report(is_redirected).await;
        is_carried(&mut first, POD4).await;

        second.lease(&[(8080, true)]);
        first.lease(&[]);
        // Until the news have come, the first one has it.
        let asking = async {
            loop {
                drop(timeout(ATTEMPT, ask(POD4)).await);
            }
        };
        tokio::select! {
            incoming = second.incoming() => drop(incoming),
            () = asking => {}
        }
        is_carried(&mut second, POD4).await;
    });
}

#[test]
#[ignore = "needs root"]
fn the_container_serves_when_the_manager_is_lost() {
    let stage = Stage::new("b");
    stage.run(async {
        let (mut manager, _agent) = redirected(&stage).await;
        is_carried(&mut manager, POD4).await;

        drop(manager);
        is_soon(POD4, is_container).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_redirect_is_made_anew_when_the_program_with_power_is_replaced() {
    let stage = Stage::new("c");
    stage.run(async {
        let (mut manager, _agent) = redirected(&stage).await;

        stage.replace_agentd();
        is_soon(POD4, is_container).await;
        manager
            .report(|report| report.phase() != PodPhase::Redirected)
            .await;
        manager.report(is_redirected).await;
        is_carried(&mut manager, POD4).await;
    });
}

#[test]
#[ignore = "needs root"]
fn the_container_serves_as_soon_as_the_agent_has_ended() {
    let stage = Stage::new("d");
    stage.run(async {
        let mut manager = Manager::start().await;
        let agent = stage.agent(&manager);
        manager.lease(&[(8080, false)]);
        manager.report(is_redirected).await;
        assert!(is_refused(&ask(POD4).await));

        agent.close().await;
        let begun = Instant::now();
        is_soon(POD4, is_container).await;
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

#[test]
#[ignore = "needs root"]
fn a_port_whose_traffic_goes_elsewhere_is_left_to_it() {
    let stage = Stage::new("e");
    stage.run(async {
        let mut manager = Manager::start().await;
        let elsewhere = TcpListener::bind("10.77.0.1:8080").await.unwrap();
        let mut facts = stage::facts();
        let pod = facts.pods.get_mut(stage::UID).unwrap();
        pod.addresses = vec![elsewhere.local_addr().unwrap().ip()];
        let _agent = stage.agent_with(&[&manager], facts);

        manager.lease(&[(8080, true)]);
        let is_elsewhere = |report: &PodReport| report.reason.contains("went elsewhere");
        let report = manager.report(is_elsewhere).await;
        assert_eq!(report.phase(), PodPhase::Refused);
        is_soon(POD4, is_container).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_redirect_that_the_node_cannot_see_stands_and_says_so() {
    let stage = Stage::new("f");
    stage.run(async {
        let mut manager = Manager::start().await;
        let mut facts = stage::facts();
        let pod = facts.pods.get_mut(stage::UID).unwrap();
        pod.addresses = vec!["10.77.0.1".parse().unwrap()];
        let _agent = stage.agent_with(&[&manager], facts);

        manager.lease(&[(8080, true)]);
        let is_unseen = |report: &PodReport| report.reason.contains("NetworkPolicy");
        let report = manager.report(is_unseen).await;
        assert_eq!(report.phase(), PodPhase::Redirected);
        is_carried(&mut manager, POD4).await;
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_is_not_found_is_refused_with_the_reason() {
    let stage = Stage::new("g");
    stage.run(async {
        let mut manager = Manager::start().await;
        let mut facts = stage::facts();
        let pod = facts.pods.get_mut(stage::UID).unwrap();
        pod.ids.containers = vec!["0".repeat(64)];
        let _agent = stage.agent_with(&[&manager], facts);

        manager.lease(&[(8080, true)]);
        // Before that, tp-agentd may not serve yet.
        let is_not_found = |report: &PodReport| report.reason.contains("no process of the pod");
        let report = manager.report(is_not_found).await;
        assert_eq!(report.phase(), PodPhase::Refused);
        assert_eq!(ask(POD4).await.unwrap(), CONTAINER);
    });
}

//! The program in network namespaces of its own, one for a pod and one for what is outside: who reaches
//! whom. It finds the pod below a made-up `/proc`.

#![expect(clippy::unwrap_used, reason = "a failed step fails its test")]

use std::{
    fs::File,
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use tp_agent_api::{
    AgentRefusal, AgentReply, AgentRequest, LeaseState, PodIds, PortCounters, RedirectedPort,
};

use crate::{
    agent::Redirected,
    stage::{CONTAINER, HOST_POD, ID, Stage, UID, is_gone_soon},
};

#[path = "redirect/agent.rs"]
mod agent;
#[path = "redirect/earlier.rs"]
mod earlier;
#[path = "redirect/limits.rs"]
mod limits;
#[path = "redirect/stage.rs"]
mod stage;

const TIMEOUT: Duration = Duration::from_secs(10);
const OUTSIDE4: &str = "10.77.0.1:0";
const NODE4: &str = "10.77.0.9:0";
const OUTSIDE6: &str = "[fd77::1]:0";
const POD4: &str = "10.77.0.2:8080";
const POD6: &str = "[fd77::2]:8080";

/// Connects, and reads who serves.
fn ask(from: &str, to: &str) -> io::Result<String> {
    let from: SocketAddr = from.parse().unwrap();
    let family = if from.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;

    ask_by(socket, from, to)
}

fn ask_by(socket: OwnedFd, from: SocketAddr, to: &str) -> io::Result<String> {
    bind(&socket, &from)?;
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    connect(&socket, &to.parse::<SocketAddr>().unwrap())?;
    let mut answer = String::new();
    TcpStream::from(socket).read_to_string(&mut answer)?;

    Ok(answer)
}

fn port(port: u16, probed: bool) -> RedirectedPort {
    RedirectedPort { port, probed }
}

fn ports_request(redirect: u64, ports: Vec<RedirectedPort>) -> AgentRequest {
    AgentRequest::Ports {
        redirect,
        ports,
        nodes: None,
    }
}

fn counters(stage: &Stage, redirected: &Redirected) -> Vec<PortCounters> {
    let redirect = redirected.number;
    let (reply, _) = stage.request(&AgentRequest::Counters { redirect });
    let AgentReply::Counters { ports } = reply else {
        panic!("{reply:?}");
    };

    ports
}

#[test]
#[ignore = "needs root"]
fn a_client_outside_reaches_the_listener_under_its_own_address() {
    let stage = Stage::new("a");
    // Nobody listens at 9999 in the container.
    let redirected = stage.redirect(&[port(8080, false), port(9999, false)], &[]);
    redirected.renew_all(LeaseState::Redirect);

    stage.outside(|| {
        assert_eq!(ask(OUTSIDE4, POD4).unwrap(), "workstation 10.77.0.1 8080");
        assert_eq!(ask(OUTSIDE6, POD6).unwrap(), "workstation fd77::1 8080");
        let undeclared = ask(OUTSIDE4, "10.77.0.2:9999").unwrap();
        assert_eq!(undeclared, "workstation 10.77.0.1 9999");
        assert_eq!(ask(OUTSIDE4, "10.77.0.2:8081").unwrap(), CONTAINER);
        assert_eq!(ask(OUTSIDE6, "[fd77::2]:8081").unwrap(), CONTAINER);
        let nobody = ask(OUTSIDE4, "10.77.0.2:9998").unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::ConnectionRefused);
    });
    let counters = counters(&stage, &redirected);
    assert_eq!(counters[0].redirected, 2);
    assert_eq!(counters[1].redirected, 1);
}

#[test]
#[ignore = "needs root"]
fn the_pod_itself_reaches_its_container() {
    let stage = Stage::new("b");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    redirected.renew_all(LeaseState::Redirect);

    stage.inside(|| {
        for (from, to) in [
            ("127.0.0.1:0", "127.0.0.1:8080"),
            ("10.77.0.2:0", POD4),
            ("127.0.0.1:0", POD4),
            ("[::1]:0", "[::1]:8080"),
            ("[::1]:0", POD6),
            ("[fd77::2]:0", POD6),
            // Another address of the pod.
            ("10.77.0.3:0", POD4),
            ("[fd77::3]:0", POD6),
        ] {
            assert_eq!(ask(from, to).unwrap(), CONTAINER, "{from} to {to}");
        }
    });
    assert_eq!(counters(&stage, &redirected)[0].exempt, 8);
    assert_eq!(counters(&stage, &redirected)[0].redirected, 0);
}

#[test]
#[ignore = "needs root"]
fn the_container_serves_without_a_lease() {
    let stage = Stage::new("c");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    let now = |seconds: i64| redirected.renew(0, LeaseState::Redirect, seconds);
    let who = || stage.outside(|| ask(OUTSIDE4, POD4).unwrap());

    assert_eq!(who(), CONTAINER);
    now(-6);
    assert_eq!(who(), CONTAINER);
    now(-3);
    assert!(who().starts_with("workstation"));
    now(60);
    assert_eq!(who(), CONTAINER);
    redirected.renew(0, LeaseState::Container, 0);
    assert_eq!(who(), CONTAINER);
    redirected.renew(0, LeaseState::Refuse, -6);
    assert_eq!(who(), CONTAINER);

    let counters = counters(&stage, &redirected)[0];
    assert_eq!((counters.lease_over, counters.container), (4, 1));
    assert_eq!(counters.redirected, 1);
}

#[test]
#[ignore = "needs root"]
fn a_port_that_nobody_serves_at_the_workstation_refuses() {
    let stage = Stage::new("d");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    redirected.renew_all(LeaseState::Refuse);

    stage.outside(|| {
        for (from, to) in [(OUTSIDE4, POD4), (OUTSIDE6, POD6)] {
            let error = ask(from, to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
    });
    stage.inside(|| assert_eq!(ask("127.0.0.1:0", "127.0.0.1:8080").unwrap(), CONTAINER));
    assert_eq!(counters(&stage, &redirected)[0].refused, 2);
}

#[test]
#[ignore = "needs root"]
fn what_the_node_sends_to_a_probed_port_is_for_the_container() {
    let stage = Stage::new("e");
    let ports = [port(8080, true), port(8081, false)];
    let redirected = stage.redirect(&ports, &["10.77.0.9", "fd77::9"]);

    stage.outside(|| {
        for state in [LeaseState::Redirect, LeaseState::Refuse] {
            redirected.renew_all(state);
            assert_eq!(ask(NODE4, POD4).unwrap(), CONTAINER);
            assert_eq!(ask("[fd77::9]:0", POD6).unwrap(), CONTAINER);
        }
        redirected.renew_all(LeaseState::Redirect);
        assert!(ask(OUTSIDE4, POD4).unwrap().starts_with("workstation"));
        let not_probed = ask(NODE4, "10.77.0.2:8081").unwrap();
        assert_eq!(not_probed, "workstation 10.77.0.9 8081");
    });
    assert_eq!(counters(&stage, &redirected)[0].probes, 4);
    assert_eq!(counters(&stage, &redirected)[1].probes, 0);
}

#[test]
#[ignore = "needs root"]
fn nothing_stays_in_the_pod_after_the_end() {
    let stage = Stage::new("f");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    redirected.renew_all(LeaseState::Redirect);
    assert!(stage.links() == 1 && stage.listeners_of_ours() == 2);

    let redirect = redirected.number;
    let (reply, _) = stage.request(&AgentRequest::Release { redirect });
    assert_eq!(reply, AgentReply::Done);
    assert_eq!(stage.links(), 0);
    redirected.renew_all(LeaseState::Redirect);
    stage.outside(|| assert_eq!(ask(OUTSIDE4, POD4).unwrap(), CONTAINER));
    drop(redirected);
    assert!(is_gone_soon(|| stage.listeners_of_ours()));
    let (again, _) = stage.request(&AgentRequest::Release { redirect });
    assert!(matches!(again, AgentReply::Refused { .. }), "{again:?}");

    let redirected = stage.redirect(&[port(8080, false)], &[]);
    assert!(redirected.number != redirect && stage.links() == 1);
    redirected.renew_all(LeaseState::Redirect);
    stage.hang_up();
    assert!(is_gone_soon(|| stage.links()));
    stage.outside(|| assert_eq!(ask(OUTSIDE4, POD4).unwrap(), CONTAINER));
}

#[test]
#[ignore = "needs root"]
fn the_agent_reaches_the_container_under_the_address_of_the_pod() {
    let stage = Stage::new("g");
    let redirected = stage.redirect(&[port(8080, false)], &[]);
    redirected.renew_all(LeaseState::Redirect);
    let redirect = redirected.number;

    for (ipv6, from, to) in [(false, "10.77.0.2:0", POD4), (true, "[fd77::2]:0", POD6)] {
        let (reply, mut fds) = stage.request(&AgentRequest::Socket { redirect, ipv6 });
        assert_eq!((reply, fds.len()), (AgentReply::Socket, 1));
        let socket = fds.remove(0);
        rustix::io::ioctl_fionbio(&socket, false).unwrap();
        let answer = ask_by(socket, from.parse().unwrap(), to).unwrap();
        assert_eq!(answer, CONTAINER);
    }
}

#[test]
#[ignore = "needs root"]
fn ports_that_stay_keep_their_leases() {
    let stage = Stage::new("h");
    let redirected = stage.redirect(&[port(8080, false), port(8081, false)], &[]);
    redirected.renew_all(LeaseState::Redirect);
    let redirect = redirected.number;

    let ports = vec![port(8081, false), port(9999, false)];
    let (reply, _) = stage.request(&ports_request(redirect, ports));
    let AgentReply::Changed { leases } = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(
        leases
            .iter()
            .map(|it| (it.port, it.index))
            .collect::<Vec<_>>(),
        [(8081, 1), (9999, 2)]
    );
    stage.outside(|| {
        assert_eq!(ask(OUTSIDE4, POD4).unwrap(), CONTAINER);
        let kept = ask(OUTSIDE4, "10.77.0.2:8081").unwrap();
        assert!(kept.starts_with("workstation"));
        // No lease was given to it, and that of the port that has gone is not its own.
        let fresh = ask(OUTSIDE4, "10.77.0.2:9999").unwrap_err();
        assert_eq!(fresh.kind(), io::ErrorKind::ConnectionRefused);
    });
    redirected.renew(0, LeaseState::Redirect, 0);
    let places = (1..=64).map(|added| {
        let ports = vec![port(8081, false), port(added, false)];
        let (reply, _) = stage.request(&ports_request(redirect, ports));
        let AgentReply::Changed { leases } = reply else {
            panic!("{reply:?}");
        };
        leases[0].index
    });
    let places: Vec<u32> = places.collect();
    assert_eq!(places[..4], [3, 4, 5, 6]);
    assert_eq!(places[60..], [63, 0, 2, 3], "all others were used before");
    for ports in [
        vec![port(1, false); 65],
        vec![port(1, false); 2],
        vec![port(0, false)],
    ] {
        let (reply, _) = stage.request(&ports_request(redirect, ports));
        assert!(matches!(
            reply,
            AgentReply::Refused {
                kind: AgentRefusal::Invalid,
                ..
            }
        ));
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_no_pod_of_the_node_is_refused() {
    let stage = Stage::new("i");
    let redirect = |uid: &str, id: &str| {
        let (reply, fds) = stage.request(&AgentRequest::Redirect {
            pod: PodIds {
                uid: uid.into(),
                containers: vec![id.into()],
                addresses: Vec::new(),
            },
            ports: vec![port(8080, false)],
            nodes: Vec::new(),
        });
        let AgentReply::Refused { kind, message } = reply else {
            panic!("{reply:?}");
        };
        assert!(fds.is_empty());
        (kind, message)
    };

    let (kind, message) = redirect(HOST_POD, ID);
    assert!(kind == AgentRefusal::Unsupported && message.contains("hostNetwork"));
    let other = "00000000-8f3a-4f6e-9a51-0c7a1d2e3f40";
    assert_eq!(redirect(other, ID).0, AgentRefusal::NotFound);
    assert_eq!(redirect(UID, &"0".repeat(64)).0, AgentRefusal::NotFound);
    assert_eq!(redirect("../1", ID).0, AgentRefusal::Invalid);
    assert_eq!(redirect(UID, "x").0, AgentRefusal::Invalid);
    assert_eq!(stage.links(), 0);
    let _first = stage.redirect(&[port(8080, false)], &[]);
    assert_eq!(redirect(UID, ID).0, AgentRefusal::Invalid);
}

#[test]
#[ignore = "needs root"]
fn an_environment_is_that_of_the_first_process() {
    let stage = Stage::new("j");
    let environ = |id: &str| {
        let (uid, container) = (UID.into(), id.into());
        stage.request(&AgentRequest::Environ { uid, container })
    };

    let (reply, mut fds) = environ(ID);
    assert_eq!(reply, AgentReply::Environ { intact: true });
    let mut text = String::new();
    File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
    assert_eq!(text, "A=1\0SECRET=x y\0");
    let (reply, fds) = environ(&"0".repeat(64));
    assert!(matches!(
        reply,
        AgentReply::Refused {
            kind: AgentRefusal::NotFound,
            ..
        }
    ));
    assert!(fds.is_empty());
}

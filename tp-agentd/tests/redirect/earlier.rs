//! Connections that were opened before the redirect: the container has them until somebody ends them.

use std::{
    fs,
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tp_agent_api::{AgentReply, AgentRequest, EarlierConnections, LeaseState, PodIds};

use crate::{
    NODE4, OUTSIDE4, OUTSIDE6,
    agent::Redirected,
    port,
    stage::{ID, Stage, UID, is_soon},
};

/// A server of the container that answers nothing, and its clients.
struct Clients {
    listener: TcpListener,
    port: u16,
    accepted: Vec<TcpStream>,
}

impl Clients {
    fn of(stage: &Stage, port: u16) -> Self {
        let listener = stage.inside(|| TcpListener::bind(format!("[::]:{port}")).unwrap());

        Self {
            listener,
            port,
            accepted: Vec::new(),
        }
    }

    fn outside(&mut self, stage: &Stage, from: &str) -> TcpStream {
        let client = stage.outside(|| open(from, self.port));
        self.accepted.push(self.listener.accept().unwrap().0);

        client
    }

    fn inside(&mut self, stage: &Stage, from: &str) -> TcpStream {
        let client = stage.inside(|| open(from, self.port));
        self.accepted.push(self.listener.accept().unwrap().0);

        client
    }
}

/// Connects to this port of the pod, by IPv4 or IPv6.
fn open(from: &str, port: u16) -> TcpStream {
    let from: SocketAddr = from.parse().unwrap();
    let (family, to) = match from.is_ipv4() {
        true => (AddressFamily::INET, format!("10.77.0.2:{port}")),
        false => (AddressFamily::INET6, format!("[fd77::2]:{port}")),
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &from).unwrap();
    connect(&socket, &to.parse::<SocketAddr>().unwrap()).unwrap();

    socket.into()
}

fn look(stage: &Stage, redirected: &Redirected, end: &[u16]) -> Vec<EarlierConnections> {
    let redirect = redirected.number;
    let end = end.to_vec();
    match stage.request(&AgentRequest::Earlier { redirect, end }).0 {
        AgentReply::Earlier {
            ports,
            obstacle: None,
            more: false,
        } => ports,
        reply => panic!("{reply:?}"),
    }
}

fn peers(earlier: &EarlierConnections) -> Vec<(String, u64)> {
    let peers = earlier.peers.iter();

    peers
        .map(|peer| (peer.address.to_string(), peer.count))
        .collect()
}

/// Nothing was sent, so whatever comes is the end.
fn is_reset(mut client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs root"]
fn connections_opened_earlier_are_counted_by_port_and_peer_until_they_are_ended() {
    let stage = Stage::new("y");
    let (mut web, mut other) = (Clients::of(&stage, 9000), Clients::of(&stage, 9001));
    let mut not_redirected = Clients::of(&stage, 9002);
    let earlier = [OUTSIDE4, OUTSIDE4, OUTSIDE6].map(|from| web.outside(&stage, from));
    let of_pod = ["127.0.0.1:0", "10.77.0.3:0", "[fd77::2]:0"];
    let of_pod = of_pod.map(|from| web.inside(&stage, from));
    let of_other = other.outside(&stage, OUTSIDE4);
    let of_none = not_redirected.outside(&stage, OUTSIDE4);
    let ports = [port(9000, false), port(9001, false)];
    let redirected = stage.redirect_unserved(&ports, &[]);
    redirected.renew_all(LeaseState::Redirect);
    let later = stage.outside(|| [OUTSIDE4, OUTSIDE6].map(|from| open(from, 9000)));

    let counted = look(&stage, &redirected, &[]);

    let numbers = counted.iter().map(|it| (it.port, it.count, it.ended));
    assert_eq!(numbers.collect::<Vec<_>>(), [(9000, 3, 0), (9001, 1, 0)]);
    let expected = [("10.77.0.1".to_owned(), 2), ("fd77::1".to_owned(), 1)];
    assert_eq!(peers(&counted[0]), expected);
    assert!(!earlier.iter().any(is_reset));

    let counted = look(&stage, &redirected, &[9000, 9002]);

    let numbers = counted.iter().map(|it| (it.port, it.count, it.ended));
    assert_eq!(numbers.collect::<Vec<_>>(), [(9000, 0, 3), (9001, 1, 0)]);
    assert!(is_soon(|| earlier.iter().all(is_reset)));
    let kept = later.iter().chain(&of_pod).chain([&of_other, &of_none]);
    assert!(!kept.into_iter().any(is_reset));
}

#[test]
#[ignore = "needs root"]
fn many_connections_are_ended_by_several_requests() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let stage = Stage::new("mo");
    let mut web = Clients::of(&stage, 9000);
    let mut earlier = Vec::new();
    for _ in 0..21 {
        let some = || (0..100).map(|_| open(OUTSIDE4, 9000)).collect();
        let some: Vec<TcpStream> = stage.outside(some);
        for _ in &some {
            web.accepted.push(web.listener.accept().unwrap().0);
        }
        earlier.extend(some);
    }
    let redirected = stage.redirect_unserved(&[port(9000, false)], &[]);
    let ended = || {
        let request = AgentRequest::Earlier {
            redirect: redirected.number,
            end: vec![9000],
        };
        match stage.request(&request).0 {
            AgentReply::Earlier { ports, more, .. } => (ports[0].ended, ports[0].count, more),
            reply => panic!("{reply:?}"),
        }
    };

    assert_eq!(ended(), (2048, 52, true));
    assert_eq!(ended(), (52, 0, false));
    assert!(is_soon(|| earlier.iter().all(is_reset)));
}

#[test]
#[ignore = "needs root"]
fn what_comes_from_the_node_to_a_probed_port_is_left_alone() {
    let stage = Stage::new("z");
    let mut web = Clients::of(&stage, 9000);
    let of_node = web.outside(&stage, NODE4);
    let of_client = web.outside(&stage, OUTSIDE4);
    let redirected = stage.redirect_unserved(&[port(9000, true)], &["10.77.0.9"]);

    let counted = &look(&stage, &redirected, &[])[0];
    assert_eq!(peers(counted), [("10.77.0.1".to_owned(), 1)]);
    let counted = &look(&stage, &redirected, &[9000])[0];

    assert_eq!((counted.count, counted.ended), (0, 1));
    assert!(is_soon(|| is_reset(&of_client)));
    assert!(!is_reset(&of_node));
}

#[test]
#[ignore = "needs root"]
fn the_network_of_a_containers_children_is_not_taken_for_the_pods() {
    let stage = Stage::new("d2");
    let redirect = |addresses: &[&str]| {
        stage.request(&AgentRequest::Redirect {
            pod: PodIds {
                uid: UID.into(),
                containers: vec![ID.into()],
                addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            },
            ports: vec![port(8080, false)],
            nodes: Vec::new(),
        })
    };
    let is_refused =
        |addresses: &[&str]| matches!(redirect(addresses).0, AgentReply::Refused { .. });
    let own = ["10.77.0.2", "fd77::2"];

    // Of the container, and in another network, as what a Docker daemon runs.
    let child = stage.add_process_outside();
    let started = |ticks: u64| {
        let zeros = "0 ".repeat(18);
        fs::write(child.join("stat"), format!("9 (x) S {zeros}{ticks} 0 0\n")).unwrap();
    };
    started(u64::MAX - 1);
    assert!(is_refused(&[]), "without addresses it is not known");
    // As of a sandbox: the network has lost them.
    assert!(is_refused(&["10.77.0.2", "10.77.0.66"]));
    started(0);
    assert!(is_refused(&own), "the first process is elsewhere");
    started(u64::MAX - 1);
    let (reply, fds) = redirect(&own);
    assert!(matches!(reply, AgentReply::Redirected { .. }), "{reply:?}");
    assert_eq!(fds.len(), 3);
    let is_inside = stage.listeners_of_ours() == 2;
    assert!(is_inside, "the listeners are in the pod's own network");
}

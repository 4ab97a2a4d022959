//! The packets between the two parts of the agent, to the letter.

use std::{fmt::Debug, fs::File, net::IpAddr, os::fd::OwnedFd};

use serde::{Serialize, de::DeserializeOwned};
use tp_agent_api::{
    AgentRefusal, AgentReply, AgentRequest, EarlierConnections, EarlierPeer, MAX_CONTAINERS,
    MAX_EARLIER_PEERS, MAX_NODES, MAX_POD_ADDRESSES, MAX_PORTS, PROTOCOL, PodIds, PortCounters,
    PortLease, RedirectFds, RedirectedPort,
};

#[track_caller]
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(packet: &T, text: &str) {
    let written = serde_json::to_string(packet).expect("packets can be written");
    assert_eq!(written, text);
    let read: T = serde_json::from_str(text).expect("what was written");
    assert_eq!(&read, packet);
}

fn port(port: u16, probed: bool) -> RedirectedPort {
    RedirectedPort { port, probed }
}

#[test]
fn requests_are_these_packets() {
    golden(
        &AgentRequest::Hello {
            version: "0.1.0".into(),
            protocol: PROTOCOL,
        },
        r#"{"request":"hello","version":"0.1.0","protocol":1}"#,
    );
    golden(
        &AgentRequest::Redirect {
            pod: PodIds {
                uid: "u".into(),
                containers: vec!["c".into()],
                addresses: vec!["10.244.0.7".parse().unwrap()],
            },
            ports: vec![port(80, true), port(81, false)],
            nodes: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        },
        concat!(
            r#"{"request":"redirect","pod":{"uid":"u","containers":["c"],"addresses":["10.244.0.7"]},"#,
            r#""ports":[{"port":80,"probed":true},{"port":81}],"nodes":["10.0.0.1","fd00::1"]}"#
        ),
    );
    golden(
        &AgentRequest::Ports {
            redirect: 3,
            ports: vec![port(80, false)],
            nodes: None,
        },
        r#"{"request":"ports","redirect":3,"ports":[{"port":80}]}"#,
    );
    golden(
        &AgentRequest::Ports {
            redirect: 3,
            ports: Vec::new(),
            nodes: Some(vec!["10.0.0.1".parse().unwrap()]),
        },
        r#"{"request":"ports","redirect":3,"ports":[],"nodes":["10.0.0.1"]}"#,
    );
    golden(
        &AgentRequest::Release { redirect: 3 },
        r#"{"request":"release","redirect":3}"#,
    );
    golden(
        &AgentRequest::Counters { redirect: 3 },
        r#"{"request":"counters","redirect":3}"#,
    );
    golden(
        &AgentRequest::Earlier {
            redirect: 3,
            end: Vec::new(),
        },
        r#"{"request":"earlier","redirect":3}"#,
    );
    golden(
        &AgentRequest::Earlier {
            redirect: 3,
            end: vec![80],
        },
        r#"{"request":"earlier","redirect":3,"end":[80]}"#,
    );
    golden(
        &AgentRequest::Socket {
            redirect: 3,
            ipv6: false,
        },
        r#"{"request":"socket","redirect":3}"#,
    );
    golden(
        &AgentRequest::Socket {
            redirect: 3,
            ipv6: true,
        },
        r#"{"request":"socket","redirect":3,"ipv6":true}"#,
    );
    golden(
        &AgentRequest::Environ {
            uid: "u".into(),
            container: "c".into(),
        },
        r#"{"request":"environ","uid":"u","container":"c"}"#,
    );
}

#[test]
fn replies_are_these_packets() {
    let leases = || vec![PortLease { port: 80, index: 0 }];
    golden(
        &AgentReply::Hello {
            version: "0.1.0".into(),
            protocol: PROTOCOL,
        },
        r#"{"reply":"hello","version":"0.1.0","protocol":1}"#,
    );
    golden(
        &AgentReply::Redirected {
            redirect: 3,
            leases: leases(),
        },
        r#"{"reply":"redirected","redirect":3,"leases":[{"port":80,"index":0}]}"#,
    );
    golden(
        &AgentReply::Changed { leases: leases() },
        r#"{"reply":"changed","leases":[{"port":80,"index":0}]}"#,
    );
    golden(&AgentReply::Done, r#"{"reply":"done"}"#);
    golden(
        &AgentReply::Counters {
            ports: vec![PortCounters {
                port: 80,
                redirected: 1,
                lease_over: 2,
                container: 3,
                exempt: 4,
                probes: 5,
                refused: 6,
                elsewhere: 7,
            }],
        },
        concat!(
            r#"{"reply":"counters","ports":[{"port":80,"redirected":1,"lease_over":2,"#,
            r#""container":3,"exempt":4,"probes":5,"refused":6,"elsewhere":7}]}"#
        ),
    );
    golden(
        &AgentReply::Earlier {
            ports: vec![EarlierConnections {
                port: 80,
                count: 3,
                peers: vec![EarlierPeer {
                    address: "10.244.0.8".parse().unwrap(),
                    count: 2,
                }],
                ended: 1,
            }],
            obstacle: Some("o".into()),
            more: true,
        },
        concat!(
            r#"{"reply":"earlier","ports":[{"port":80,"count":3,"#,
            r#""peers":[{"address":"10.244.0.8","count":2}],"ended":1}],"obstacle":"o","more":true}"#
        ),
    );
    golden(&AgentReply::Socket, r#"{"reply":"socket"}"#);
    golden(
        &AgentReply::Environ { intact: true },
        r#"{"reply":"environ","intact":true}"#,
    );
    golden(
        &AgentReply::Refused {
            kind: AgentRefusal::NotFound,
            message: "m".into(),
        },
        r#"{"reply":"refused","kind":"not_found","message":"m"}"#,
    );
}

#[test]
fn the_largest_request_fits_into_a_packet() {
    let request = AgentRequest::Redirect {
        pod: PodIds {
            uid: "x".repeat(36),
            containers: vec!["x".repeat(64); MAX_CONTAINERS],
            addresses: vec![longest_address(); MAX_POD_ADDRESSES],
        },
        ports: vec![port(u16::MAX, true); MAX_PORTS],
        nodes: vec![longest_address(); MAX_NODES],
    };

    assert!(serde_json::to_vec(&request).unwrap().len() < tp_packet::MAX_PACKET);
}

fn longest_address() -> IpAddr {
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        .parse()
        .expect("an address")
}

#[test]
fn the_largest_reply_fits_into_a_packet() {
    let peer = EarlierPeer {
        address: longest_address(),
        count: u64::MAX,
    };
    let port = EarlierConnections {
        port: u16::MAX,
        count: u64::MAX,
        peers: vec![peer; MAX_EARLIER_PEERS],
        ended: u64::MAX,
    };
    let reply = AgentReply::Earlier {
        ports: vec![port; MAX_PORTS],
        obstacle: Some("x".repeat(512)),
        more: true,
    };

    assert!(serde_json::to_vec(&reply).unwrap().len() < tp_packet::MAX_PACKET);
}

#[test]
fn descriptors_are_two_or_three() {
    let some = |count| {
        let fds = (0..count).map(|_| OwnedFd::from(File::open("/dev/null").unwrap()));
        RedirectFds::from_fds(fds.collect())
    };

    assert!(some(1).is_none() && some(4).is_none());
    assert_eq!(some(2).unwrap().into_fds().len(), 2);
    assert_eq!(some(3).unwrap().into_fds().len(), 3);
}

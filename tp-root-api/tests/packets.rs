//! The packets between session and root daemon, to the letter: programs of one protocol must read each
//! other's.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use tp_root_api::{
    Counters, Datapath, DropReason, MAX_NETWORKS_PER_PACKET, MAX_OVERLAPS, MAX_PACKET,
    OpenDatapath, Overlap, PROTOCOL, RefusedKind, Reply, Request, Scope, Steer,
};

#[track_caller]
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(packet: &T, text: &str) {
    let written = serde_json::to_string(packet).expect("packets can be written");
    assert_eq!(written, text);
    let read: T = serde_json::from_str(text).expect("what was written");
    assert_eq!(&read, packet);
}

fn datapath(shows_clients: bool) -> Datapath {
    Datapath {
        alias_base: "241.2.0.0".parse().expect("an address"),
        alias_base6: "fd5a:1:2:3::".parse().expect("an address"),
        alias_count: 256,
        host_address: "241.3.255.1".parse().expect("an address"),
        host_address6: "fd5a:1:2:3:0:1::".parse().expect("an address"),
        mtu: 65521,
        hooks: vec!["cgroup/connect4".into()],
        shows_clients,
    }
}

#[test]
fn that_clients_are_shown_is_said_and_asked_for_by_these_packets() {
    golden(
        &Request::ShowClient {
            client: "10.244.2.9:40112".parse().unwrap(),
        },
        r#"{"request":"show_client","client":"10.244.2.9:40112"}"#,
    );
    // A root daemon that says nothing of it is not asked.
    let opened = serde_json::to_string(&Reply::Opened(datapath(true))).unwrap();
    assert!(opened.ends_with(r#""shows_clients":true}"#), "{opened}");
}

#[test]
fn requests_are_these_packets() {
    let open = |scope, udp| {
        Request::Open(OpenDatapath {
            scope,
            udp,
            avoid: Vec::new(),
        })
    };
    let hello = |connects| Request::Hello {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        connects,
    };

    golden(
        &hello(false),
        r#"{"request":"hello","version":"0.1.0","protocol":2}"#,
    );
    golden(
        &hello(true),
        r#"{"request":"hello","version":"0.1.0","protocol":2,"connects":true}"#,
    );
    golden(
        &open(Scope::User, false),
        r#"{"request":"open","scope":"user"}"#,
    );
    golden(
        &open(Scope::System, false),
        r#"{"request":"open","scope":"system"}"#,
    );
    golden(
        &open(
            Scope::Cgroup {
                path: "/sys/fs/cgroup/tp".into(),
            },
            true,
        ),
        r#"{"request":"open","scope":{"cgroup":{"path":"/sys/fs/cgroup/tp"}},"udp":true}"#,
    );
    golden(
        &Request::Open(OpenDatapath {
            scope: Scope::User,
            udp: false,
            avoid: vec!["241.0.0.0/8".parse().unwrap()],
        }),
        r#"{"request":"open","scope":"user","avoid":["241.0.0.0/8"]}"#,
    );
    golden(
        &Request::Steer(Steer {
            include: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00::/112".parse().unwrap(),
            ],
            exclude: vec!["10.96.0.1/32".parse().unwrap()],
            remove: vec!["10.244.0.0/16".parse().unwrap()],
        }),
        concat!(
            r#"{"request":"steer","include":["10.96.0.0/16","fd00::/112"],"#,
            r#""exclude":["10.96.0.1/32"],"remove":["10.244.0.0/16"]}"#
        ),
    );
    golden(&Request::Steer(Steer::default()), r#"{"request":"steer"}"#);
    golden(
        &Request::NameServers {
            servers: vec![
                "127.0.0.53:53".parse().unwrap(),
                "[fd00::a]:53".parse().unwrap(),
            ],
        },
        r#"{"request":"name_servers","servers":["127.0.0.53:53","[fd00::a]:53"]}"#,
    );
    golden(&Request::Counters, r#"{"request":"counters"}"#);
    golden(&Request::Overlaps, r#"{"request":"overlaps"}"#);
    golden(&Request::Close, r#"{"request":"close"}"#);
}

#[test]
fn replies_are_these_packets() {
    golden(
        &Reply::Hello {
            version: "0.1.0".into(),
            protocol: PROTOCOL,
            pid: 7,
            ends_with_last_session: true,
        },
        concat!(
            r#"{"reply":"hello","version":"0.1.0","protocol":2,"pid":7,"#,
            r#""ends_with_last_session":true}"#
        ),
    );
    golden(
        &Reply::Opened(datapath(false)),
        concat!(
            r#"{"reply":"opened","alias_base":"241.2.0.0","alias_base6":"fd5a:1:2:3::","#,
            r#""alias_count":256,"host_address":"241.3.255.1","#,
            r#""host_address6":"fd5a:1:2:3:0:1::","mtu":65521,"hooks":["cgroup/connect4"]}"#
        ),
    );
    golden(
        &Reply::Overlaps {
            overlaps: vec![
                Overlap {
                    network: "10.96.0.0/16".parse().unwrap(),
                    is_name_server: false,
                    pid: 7,
                },
                Overlap {
                    network: "127.0.0.53/32".parse().unwrap(),
                    is_name_server: true,
                    pid: 7,
                },
            ],
        },
        concat!(
            r#"{"reply":"overlaps","overlaps":[{"network":"10.96.0.0/16","pid":7},"#,
            r#"{"network":"127.0.0.53/32","is_name_server":true,"pid":7}]}"#
        ),
    );
    golden(&Reply::Done, r#"{"reply":"done"}"#);
    golden(
        &Reply::Counters(Counters {
            drops: vec![("scope".into(), 1)],
            not_steered: vec![("udp".into(), 2)],
            aliases: 3,
            steered: 4,
        }),
        concat!(
            r#"{"reply":"counters","drops":[["scope",1]],"not_steered":[["udp",2]],"#,
            r#""aliases":3,"steered":4}"#
        ),
    );
    for (kind, name) in [
        (RefusedKind::Invalid, "invalid"),
        (RefusedKind::Permission, "permission"),
        (RefusedKind::Unsupported, "unsupported"),
        (RefusedKind::Failed, "failed"),
    ] {
        golden(
            &Reply::Refused {
                kind,
                message: "no".into(),
            },
            &format!(r#"{{"reply":"refused","kind":"{name}","message":"no"}}"#),
        );
    }
}

/// A newer program may send more fields.
#[test]
fn fields_that_are_not_known_are_harmless() {
    let request = r#"{"request":"hello","version":"0.2.0","wish":"something"}"#;
    let request: Request = serde_json::from_str(request).unwrap();
    assert_eq!(
        request,
        Request::Hello {
            version: "0.2.0".into(),
            protocol: 1,
            connects: false,
        }
    );

    let reply =
        r#"{"reply":"counters","drops":[],"not_steered":[],"aliases":0,"steered":0,"new":1}"#;
    let reply: Reply = serde_json::from_str(reply).unwrap();
    assert_eq!(reply, Reply::Counters(Counters::default()));
}

#[test]
fn a_reason_for_drops_that_is_not_known_is_harmless() {
    let counters = Counters {
        drops: vec![("new".into(), 1), ("foreign_socket".into(), 2)],
        ..Counters::default()
    };

    assert_eq!(DropReason::from_name("new"), None);
    assert_eq!(counters.dropped(DropReason::ForeignSocket), Some(2));
    assert_eq!(counters.dropped(DropReason::Unasked), None);
    for (reason, name) in [
        (DropReason::ForeignSocket, "foreign_socket"),
        (DropReason::Unasked, "unasked"),
    ] {
        assert_eq!(reason.name(), name);
        assert_eq!(DropReason::from_name(name), Some(reason));
    }
}

#[test]
fn programs_of_the_first_protocol_are_recognised_and_daemons_of_it_stay() {
    let old = r#"{"reply":"hello","version":"0.1.0","pid":7}"#;

    let read: Reply = serde_json::from_str(old).unwrap();

    assert!(matches!(
        read,
        Reply::Hello {
            protocol: 1,
            ends_with_last_session: false,
            ..
        }
    ));
}

#[test]
fn a_packet_of_networks_is_no_larger_than_a_packet_may_be() {
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128";
    let request = Request::Steer(Steer {
        include: vec![longest.parse().unwrap(); MAX_NETWORKS_PER_PACKET],
        ..Steer::default()
    });

    assert!(serde_json::to_vec(&request).unwrap().len() <= MAX_PACKET);
}

#[test]
fn a_reply_about_overlaps_is_no_larger_than_a_packet_may_be() {
    let overlap = Overlap {
        network: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            .parse()
            .unwrap(),
        is_name_server: true,
        pid: u32::MAX,
    };
    let reply = Reply::Overlaps {
        overlaps: vec![overlap; MAX_OVERLAPS],
    };

    assert!(serde_json::to_vec(&reply).unwrap().len() <= MAX_PACKET);
}

//! The messages between session and traffic manager, to the byte: what programs of other versions
//! send and expect. A golden value changes only when no program understands the old one any more; a
//! message that grows gets one more.

use std::fmt::Debug;

use prost::Message;
use tp_proto::tunnel::{
    Control, Credit, Dial, Endpoint, FlowUpdates, HelloRequest, HelloResponse, Intercepted,
    KeepAlive, ListWorkloadsRequest, ListWorkloadsResponse, Open, Outcome, ResolveRequest,
    ResolveResponse, Service, ServiceName, Snapshot, TableEvent, Verdict, Workload, WorkloadPort,
    open::Kind, table_event::Event,
};

#[track_caller]
fn golden<M: Message + Default + Debug + PartialEq>(message: &M, hex: &str) {
    let bytes = message.encode_to_vec();
    let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();

    assert_eq!(written, hex, "{message:?}");
    let read = M::decode(bytes.as_slice()).expect("what was written");
    assert_eq!(&read, message);
}

fn event(event: Event) -> TableEvent {
    TableEvent { event: Some(event) }
}

#[test]
fn a_stream_begins_as_it_always_did() {
    let control = Open {
        kind: Some(Kind::Control(Control {})),
        credit: 0,
    };
    let dial = Open {
        kind: Some(Kind::Dial(Dial {
            address: vec![10, 96, 1, 2].into(),
            port: 80,
            to_container: false,
        })),
        credit: 0,
    };
    let with_credit = Open {
        credit: 262_144,
        ..dial.clone()
    };

    let to_container = Open {
        kind: Some(Kind::Dial(Dial {
            address: vec![10, 96, 1, 2].into(),
            port: 80,
            to_container: true,
        })),
        credit: 0,
    };

    golden(&control, "0a00");
    golden(&to_container, "120a0a040a60010210501801");
    golden(&dial, "12080a040a6001021050");
    golden(&with_credit, "12080a040a600102105018808010");
}

#[test]
fn an_intercepted_connection_begins_with_its_intercept_and_its_client() {
    let intercepted = Open {
        kind: Some(Kind::Intercepted(Intercepted {
            intercept_uid: "6f1c".into(),
            port: 8080,
            client_address: vec![10, 244, 0, 7].into(),
            client_port: 40_000,
            pod_address: vec![10, 244, 0, 9].into(),
        })),
        credit: 262_144,
    };

    golden(
        &intercepted,
        "22190a043666316310903f1a040af4000720c0b8022a040af4000918808010",
    );
}

#[test]
fn a_verdict_is_read_by_every_version() {
    let verdict = |outcome: Outcome, reason: &str| Verdict {
        outcome: outcome.into(),
        reason: reason.into(),
        ..Verdict::default()
    };
    let with_credit = Verdict {
        credit: 262_144,
        ..verdict(Outcome::Connected, "")
    };

    let by_container = Verdict {
        by_container: true,
        ..verdict(Outcome::Refused, "")
    };

    golden(&with_credit, "080118808010");
    golden(&by_container, "08022001");
    golden(&verdict(Outcome::Connected, ""), "0801");
    golden(&verdict(Outcome::Refused, "no"), "080212026e6f");
    golden(&verdict(Outcome::HostUnreachable, ""), "0803");
    golden(&verdict(Outcome::NetworkUnreachable, ""), "0804");
    golden(&verdict(Outcome::TimedOut, ""), "0805");
    golden(&verdict(Outcome::Prohibited, ""), "0806");
    golden(&verdict(Outcome::Exhausted, ""), "0807");
}

#[test]
fn credit_is_granted_and_given_back_by_flow() {
    let credit = |flow, bytes| Credit { flow, bytes };
    let updates = FlowUpdates {
        granted: vec![credit(0, 262_144), credit(4, 1)],
        returned: vec![credit(400, 100)],
        keep_alives: Vec::new(),
    };
    let keep_alive = FlowUpdates {
        keep_alives: vec![KeepAlive {
            flow: 4,
            seconds: 5,
        }],
        ..FlowUpdates::default()
    };

    golden(&updates, "0a04108080100a040804100112050890031064");
    golden(&keep_alive, "1a0408041005");
}

#[test]
fn both_ends_introduce_themselves_as_they_always_did() {
    let request = HelloRequest {
        version: "0.1.0".into(),
    };
    let response = HelloResponse {
        version: "0.1.0".into(),
        replica: "tp-manager-0".into(),
        candidates: vec![Endpoint {
            address: vec![192, 0, 2, 1].into(),
            port: 30071,
        }],
        cluster_domain: "cluster.local".into(),
    };

    golden(&request, "0a05302e312e30");
    golden(
        &response,
        concat!(
            "0a05302e312e30120c74702d6d616e616765722d301a0a0a04c000020110f7ea01220d636c757374",
            "65722e6c6f63616c"
        ),
    );
}

#[test]
fn the_table_of_names_is_read_by_every_version() {
    let web = Service {
        namespace: "shop".into(),
        name: "web".into(),
        cluster_ips: vec![vec![10, 96, 1, 2].into()],
    };
    let frame = Snapshot {
        namespaces: vec!["shop".into()],
        services: Vec::new(),
        service_networks: vec!["10.96.0.0/16".into()],
        pod_networks: vec!["10.244.0.0/16".into()],
        services_are_covered: false,
        services_follow: false,
    };
    let begun = Snapshot {
        services_follow: true,
        ..frame.clone()
    };
    let snapshot = Snapshot {
        services: vec![web.clone()],
        ..frame.clone()
    };
    let name = ServiceName {
        namespace: "shop".into(),
        name: "web".into(),
    };

    golden(
        &event(Event::Snapshot(snapshot)),
        concat!(
            "0a360a0473686f7012110a0473686f7012037765621a040a6001021a0c31302e39362e302e302f31",
            "36220d31302e3234342e302e302f3136"
        ),
    );
    golden(
        &event(Event::ServiceApplied(web)),
        "12110a0473686f7012037765621a040a600102",
    );
    golden(
        &event(Event::ServiceRemoved(name)),
        "1a0b0a0473686f701203776562",
    );
    golden(
        &event(Event::Replaced(frame)),
        "22230a0473686f701a0c31302e39362e302e302f3136220d31302e3234342e302e302f3136",
    );
    golden(
        &event(Event::Snapshot(begun)),
        "0a250a0473686f701a0c31302e39362e302e302f3136220d31302e3234342e302e302f31363001",
    );
}

#[test]
fn questions_to_the_cluster_are_asked_as_they_always_were() {
    let query = ResolveRequest {
        query: vec![0, 1].into(),
    };
    let answer = ResolveResponse {
        response: vec![0, 2].into(),
    };
    let list = ListWorkloadsRequest {
        namespace: "shop".into(),
    };
    let listed = ListWorkloadsResponse {
        workloads: vec![Workload {
            kind: "Deployment".into(),
            name: "web".into(),
            namespace: "shop".into(),
            ready: 2,
            desired: 3,
            intercepts: Vec::new(),
            ports: vec![WorkloadPort {
                name: "http".into(),
                protocol: "TCP".into(),
                port: 80,
            }],
        }],
    };

    golden(&query, "0a020001");
    golden(&answer, "0a020002");
    golden(&list, "0a0473686f70");
    golden(
        &listed,
        concat!(
            "0a2a0a0a4465706c6f796d656e7412037765621a0473686f7020022803320d0a0468747470120354",
            "43501850"
        ),
    );
}

//! Requests that are refused, each with its sentence, and what the others become.

use super::*;

fn request(change: impl FnOnce(&mut InterceptRequest)) -> InterceptRequest {
    let mut request = InterceptRequest {
        workload: "web".to_owned(),
        ports: vec!["8080:http".to_owned()],
        ..InterceptRequest::default()
    };
    change(&mut request);

    request
}

fn found(ports: &[(u32, u32)]) -> FindWorkloadResponse {
    let port = |(local, port): &(u32, u32)| FoundPort {
        local: *local,
        port: *port,
        ..FoundPort::default()
    };

    FindWorkloadResponse {
        kind: "Deployment".to_owned(),
        name: "web".to_owned(),
        ports: ports.iter().map(port).collect(),
        ready: 1,
        held: Vec::new(),
        pods: Vec::new(),
    }
}

#[test]
fn a_request_that_is_wrong_is_refused_with_what_to_do() {
    type Change = fn(&mut InterceptRequest);
    let cases: [(Change, &str); 10] = [
        (|it| it.workload.clear(), "is no workload"),
        (
            |it| it.workload = "cronjob/web".into(),
            "is no kind that tp intercepts",
        ),
        (
            |it| it.ports = vec!["http".into()],
            "does not begin with a port of this workstation",
        ),
        (|it| it.ports = vec!["80/UDP".into()], "has a protocol"),
        (
            |it| it.ports = vec!["80:1".into(), "80:2".into()],
            "--port 80 is given twice",
        ),
        (
            |it| it.ports = (1..=33).map(|port| port.to_string()).collect(),
            "--port is given 33 times",
        ),
        (
            |it| it.replica = "Web 1".into(),
            "is neither \"all\" nor the name of a pod",
        ),
        (
            |it| it.probes = "both".into(),
            "--probes \"both\" is unknown: use container or local",
        ),
        (
            |it| it.when_down = "wait".into(),
            "--when-down \"wait\" is unknown: use refuse or container",
        ),
        (|it| it.name = "my web".into(), "is no name of an intercept"),
    ];

    for (change, words) in cases {
        let fault = CheckedRequest::of(request(change), "shop").unwrap_err();
        assert!(fault.message.contains(words), "{fault}");
        assert_eq!(fault.kind, FaultKind::Usage, "{fault}");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let checked = CheckedRequest::of(request(|it| it.workload = "deploy/web".into()), "shop");
    let checked = checked.unwrap();

    assert_eq!(checked.name, "web");
    assert_eq!(checked.find.namespace, "shop");
    let loopback = (Ipv4Addr::LOCALHOST.into(), None);
    let wanted = checked.complete(found(&[(8080, 80)]), loopback).unwrap();
    let session = SessionRef {
        namespace: "shop".into(),
        name: "alice".into(),
        uid: "1".into(),
    };
    let spec = wanted.spec(&session);
    assert_eq!(
        (spec.replica.as_str(), spec.probes.as_str()),
        ("all", "container")
    );
    assert_eq!(spec.when_down, "refuse");
    assert!(!spec.take_open);
    assert_eq!((spec.ports.len(), spec.ports[0].port), (1, 80));
    assert!(wanted.object_name().starts_with("web-"));
    let local = wanted.ports[0].local.pick(None);
    assert_eq!(local, ("127.0.0.1:8080".parse().unwrap(), true));
}

#[test]
fn what_the_pods_have_is_taken_where_that_is_asked_for() {
    let checked = CheckedRequest::of(request(|it| it.take_open = true), "shop").unwrap();
    let loopback = (Ipv4Addr::LOCALHOST.into(), None);

    let wanted = checked.complete(found(&[(8080, 80)]), loopback).unwrap();

    let session = SessionRef {
        namespace: "shop".into(),
        name: "alice".into(),
        uid: "1".into(),
    };
    assert!(wanted.spec(&session).take_open);
}

#[test]
fn two_local_ports_for_one_port_of_the_workload_are_refused() {
    let checked = CheckedRequest::of(request(|_| {}), "shop").unwrap();
    let loopback = (Ipv4Addr::LOCALHOST.into(), None);

    let fault = checked
        .complete(found(&[(8080, 80), (8081, 80)]), loopback)
        .unwrap_err();

    assert_eq!(
        fault.message,
        "--port 8080 and --port 8081 mean the same port 80 of web: leave one out"
    );
}

#[tokio::test]
async fn an_address_is_resolved_once_and_no_address_is_loopback() {
    let resolve = |address: &str| {
        let address = address.to_owned();
        let checked = CheckedRequest::of(request(|it| it.address = address), "shop").unwrap();
        async move { checked.resolve().await }
    };

    let loopback = (Ipv4Addr::LOCALHOST.into(), Some(Ipv6Addr::LOCALHOST.into()));
    assert_eq!(resolve("").await.unwrap(), loopback);
    assert_eq!(resolve("localhost").await.unwrap(), loopback);
    assert_eq!(
        resolve("[::1]").await.unwrap(),
        (Ipv6Addr::LOCALHOST.into(), None)
    );
    let fault = resolve("no-such-host.invalid").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Config);
    assert!(
        fault.message.contains("--address no-such-host.invalid"),
        "{fault}"
    );
}

use serde_json::{Value, json};

use super::*;

fn pod() -> Value {
    json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "1"},
        "spec": {"containers": [{
            "name": "web",
            "ports": [{"name": "http", "containerPort": 8080}],
        }]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": "10.244.1.7"}, {"ip": "fd00::7"}],
            "hostIPs": [{"ip": "172.18.0.3"}],
            "containerStatuses": [
                {"name": "web", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                 "containerID": "containerd://aa", "state": {"running": {}}},
                {"name": "old", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "containerID": "containerd://bb", "state": {"waiting": {}}},
            ],
        },
    })
}

fn known(pod: Value) -> KnownPod {
    let pod: Pod = serde_json::from_value(pod).unwrap();

    read(&pod, &["10.244.1.1".parse().unwrap()]).unwrap().1
}

#[test]
fn a_bare_pod_is_a_workload_and_its_running_containers_find_it() {
    let known = known(pod());

    assert_eq!(known.facts.workloads[0].kind, "Pod");
    assert_eq!(known.facts.ids.uid, "1");
    assert_eq!(known.facts.ids.containers, ["aa"]);
    assert_eq!(known.facts.addresses.len(), 2);
    let nodes: Vec<String> = known.facts.nodes.iter().map(IpAddr::to_string).collect();
    assert_eq!(nodes, ["10.244.1.1", "172.18.0.3"]);
    assert_eq!(known.facts.obstacle, None);
}

#[test]
fn a_static_pod_is_found_by_the_hash_of_its_file() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({MIRROR: "77aa"});

    assert_eq!(known(pod).facts.ids.uid, "77aa");
}

#[test]
fn the_controller_is_the_workload() {
    let owned = |api: &str, kind: &str, controller: bool| {
        let mut pod = pod();
        pod["metadata"]["ownerReferences"] = json!([
            {"apiVersion": api, "kind": kind, "name": "x", "uid": "2", "controller": controller},
        ]);
        let known = known(pod);
        (
            known.facts.workloads.first().map(|it| it.kind.clone()),
            known.owner.is_some(),
        )
    };

    assert_eq!(
        owned("apps/v1", "StatefulSet", true),
        (Some("StatefulSet".into()), false)
    );
    assert_eq!(owned("batch/v1", "Job", true), (Some("Job".into()), false));
    assert_eq!(
        owned("apps/v1", "ReplicaSet", true),
        (Some("ReplicaSet".into()), true)
    );
    assert_eq!(
        owned("apps/v1", "ReplicaSet", false),
        (Some("Pod".into()), false)
    );
    assert_eq!(
        owned("argoproj.io/v1alpha1", "StatefulSet", true),
        (Some("Pod".into()), false)
    );
}

#[test]
fn a_pod_that_cannot_be_redirected_says_why() {
    for (pointer, value, word) in [
        (
            "/metadata/deletionTimestamp",
            json!("2026-01-01T00:00:00Z"),
            "deleted",
        ),
        (
            "/metadata/annotations",
            json!({ISTIO_SIDECAR: "{}"}),
            "Istio",
        ),
        ("/metadata/labels", json!({ISTIO_MODE: "ambient"}), "Istio"),
        ("/spec/hostNetwork", json!(true), "hostNetwork"),
        (
            "/spec/initContainers",
            json!([{"name": "linkerd-proxy"}]),
            "Linkerd",
        ),
        ("/spec/runtimeClassName", json!("kata-qemu"), "kata-qemu"),
        ("/status/phase", json!("Pending"), "not running"),
    ] {
        let mut pod = pod();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        let obstacle = known(pod).facts.obstacle.unwrap();
        assert!(obstacle.contains(word), "{obstacle}");
    }
}

#[test]
fn a_probed_port_is_known_by_number_or_name() {
    let probed = |probe: Value| {
        let mut pod = pod();
        pod["spec"]["containers"][0]["livenessProbe"] = probe;
        let facts = known(pod).facts;
        assert!(facts.probed.is_disjoint(&facts.http_probed));
        let ports = facts.probed.into_iter().chain(facts.http_probed);
        ports.collect::<Vec<_>>()
    };

    assert_eq!(probed(json!({"tcpSocket": {"port": 9000}})), [9000]);
    assert_eq!(probed(json!({"tcpSocket": {"port": "http"}})), [8080]);
    assert_eq!(probed(json!({"httpGet": {"port": "http"}})), [8080]);
    assert_eq!(probed(json!({"grpc": {"port": 9001}})), [9001]);
    assert_eq!(probed(json!({"tcpSocket": {"port": "other"}})), [0; 0]);
    assert_eq!(probed(json!({"exec": {"command": ["true"]}})), [0; 0]);
}

#[test]
fn only_plain_http_probes_can_be_told_apart() {
    let is_http = |probes: [Value; 2]| {
        let mut pod = pod();
        let [liveness, readiness] = probes;
        pod["spec"]["containers"][0]["livenessProbe"] = liveness;
        pod["spec"]["containers"][0]["readinessProbe"] = readiness;
        !known(pod).facts.http_probed.is_empty()
    };
    let http = json!({"httpGet": {"port": 8080}});
    let https = json!({"httpGet": {"port": 8080, "scheme": "HTTPS"}});
    let renamed = json!({"httpGet": {
        "port": 8080, "httpHeaders": [{"name": "user-agent", "value": "monitor"}],
    }});
    let tcp = json!({"tcpSocket": {"port": 8080}});

    assert!(is_http([http.clone(), http.clone()]));
    for other in [https, renamed, tcp] {
        assert!(!is_http([http.clone(), other.clone()]), "{other}");
        assert!(!is_http([other.clone(), other.clone()]), "{other}");
    }
}

#[test]
fn hooks_by_http_are_probes_of_their_ports() {
    let told = |lifecycle: Value| {
        let mut pod = pod();
        pod["spec"]["containers"][0]["lifecycle"] = lifecycle;
        let facts = known(pod).facts;
        let ports = |ports: BTreeSet<u16>| ports.into_iter().collect::<Vec<_>>();
        (ports(facts.http_probed), ports(facts.probed))
    };
    let http = json!({"httpGet": {"port": "http", "path": "/started"}});
    let secure = json!({"httpGet": {"port": 8443, "scheme": "HTTPS"}});

    assert_eq!(told(json!({"postStart": http})), (vec![8080], vec![]));
    assert_eq!(
        told(json!({"postStart": http, "preStop": secure})),
        (vec![8080], vec![8443])
    );
    // The kubelet does nothing of the kind.
    assert_eq!(
        told(json!({"preStop": {"tcpSocket": {"port": 8080}}})),
        (vec![], vec![])
    );
}

#[test]
fn gateways_are_those_of_the_default_routes() {
    let v4 = "Iface\tDestination\tGateway\tFlags\n\
              eth0\t00000000\t0101F40A\t0003\n\
              eth0\t0101F40A\t00000000\t0005\n";
    let zeros = "0".repeat(32);
    let v6 = format!(
        "{zeros} 00 {zeros} 00 fd000000000000000000000000000001 00000400 eth0\n\
         {zeros} 00 {zeros} 00 {zeros} ffffffff lo\n"
    );

    let gateways: Vec<String> = gateways_in(v4, &v6).iter().map(IpAddr::to_string).collect();

    let v4 = if cfg!(target_endian = "little") {
        "10.244.1.1"
    } else {
        "1.1.244.10"
    };
    assert_eq!(gateways, [v4, "fd00::1"]);
}

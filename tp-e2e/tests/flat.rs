//! A flat network, as in clouds: pods have addresses of the nodes' subnets, among databases and the
//! API server.

use std::time::Instant;

use serde_json::{Value, json};
use tp_e2e::{
    batches::in_batches,
    cluster::testbed,
    process::{PATIENCE, eventually, run},
    user::Account,
    workstation::Workstation,
};

/// Every other address of a subnet with the nodes, so that no two form a larger network.
const PODS: usize = 2000;
const KUBECTLS: usize = 10;
const NAMESPACE: &str = "e2e-flat";
/// Seconds for one `tp connect`.
const MAX_CONNECT_SECONDS: f64 = 5.0;

/// Unscheduled pods with addresses; deleted with the guard.
struct Pods;

impl Pods {
    fn make() -> Self {
        testbed().kubectl(&["create", "namespace", NAMESPACE]);
        let pods = Self;
        // Without it the first pods are refused.
        eventually("the default service account", PATIENCE, || {
            let words = ["get", "serviceaccount", "default", "--namespace", NAMESPACE];
            let asked = run(&mut testbed().kubectl_command(&words), PATIENCE);
            if asked.status.success() {
                Ok(())
            } else {
                Err(asked.stderr)
            }
        });
        let all: Vec<Value> = (0..PODS).map(pod).collect();
        in_batches(KUBECTLS, &["create", "--validate=false"], &all);
        let words = ["replace", "--validate=false", "--subresource=status"];
        in_batches(KUBECTLS, &words, &all);

        pods
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        let words = ["delete", "namespace", NAMESPACE, "--timeout=60s"];
        run(&mut testbed().kubectl_command(&words), PATIENCE);
    }
}

fn address(number: usize) -> String {
    format!("172.30.{}.{}", 8 + number / 125, 1 + number % 125 * 2)
}

fn pod(number: usize) -> Value {
    let address = address(number);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("e2e-{number}"), "namespace": NAMESPACE},
        "spec": {
            "schedulerName": "nobody",
            "automountServiceAccountToken": false,
            "containers": [{"name": "none", "image": "none"}],
        },
        "status": {"phase": "Pending", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

#[test]
fn thousands_of_pods_among_the_nodes_are_steered_one_by_one_and_kubectl_goes_on() {
    testbed().install_tp();
    let workstation = Workstation::new(Account::Root, "admin");
    let _pods = Pods::make();

    let begun = Instant::now();
    workstation.connect(&["--namespace", "shop"]);
    let took = begun.elapsed().as_secs_f64();

    assert!(took < MAX_CONNECT_SECONDS, "{took} s");
    let subnets = eventually("all pods to be steered", PATIENCE, || {
        let subnets = workstation.status()["subnets"].clone();
        let subnets = subnets.as_array().cloned().unwrap_or_default();
        let single = subnets
            .iter()
            .filter(|subnet| subnet.as_str().is_some_and(|it| it.starts_with("172.30.")))
            .count();
        if single == PODS {
            Ok(subnets)
        } else {
            Err(format!("{single} of {PODS}"))
        }
    });
    for number in [0, PODS - 1] {
        let pod = json!(format!("{}/32", address(number)));
        assert!(subnets.contains(&pod), "{pod}");
    }
    // The API server is in the pods' subnet, and stays reachable.
    let asked = workstation.run(&["kubectl", "get", "namespace", NAMESPACE, "--output=name"]);
    assert_eq!(
        asked.expect_success().trim(),
        format!("namespace/{NAMESPACE}")
    );
    let page = workstation.run(&["curl", "-sS", "--max-time", "5", "http://web/"]);
    assert!(page.stdout.contains("nginx of"), "{page}");
    workstation.tp(&["quit"]).expect_success();
}

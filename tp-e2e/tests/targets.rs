//! Addresses in the cluster, and their targets.

use std::time::Duration;

use tp_e2e::{
    applied::Applied,
    cluster::{testbed, text},
    process::{PATIENCE, eventually, run},
    user::Account,
    workstation::Workstation,
};

const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Port of the kubelet, which listens at every address of its node.
const KUBELET: u16 = 10250;
/// A refusal comes at once; a new pod may become known for a second.
const AT_ONCE_MS: f64 = 3000.0;

/// A service with a cluster IP and a manual endpoint.
#[track_caller]
fn service_led_to(namespace: &str, address: &str, port: u16) -> Applied {
    Applied::new(
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: e2e-led, namespace: {namespace}}}, \
             spec: {{ports: [{{port: {port}}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
             metadata: {{name: e2e-led-1, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: e2e-led}}}}, \
             addressType: IPv4, ports: [{{port: {port}}}], \
             endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}}}]}}"
        ),
        &[
            "--namespace",
            namespace,
            "service/e2e-led",
            "endpointslice/e2e-led-1",
        ],
    )
}

/// An address of the first node in the pods' networks, as of its bridges and tunnels.
struct OfNode(String);

impl OfNode {
    #[track_caller]
    fn add(address: &str) -> Self {
        let this = Self(format!("{address}/32"));
        this.ip("replace").expect_success();
        this
    }

    fn ip(&self, verb: &str) -> tp_e2e::process::Finished {
        let mut command = testbed().inside(&testbed().namespace("1"));
        command.args(["ip", "address", verb, &self.0, "dev", "lo"]);
        run(&mut command, PATIENCE)
    }
}

impl Drop for OfNode {
    fn drop(&mut self) {
        self.ip("del");
    }
}

/// Checks that a node can connect, so that only tp can refuse it.
#[track_caller]
fn opens_for_a_node(target: &str) {
    eventually("the target to answer a node", CHANGE_TIMEOUT, || {
        let mut command = testbed().inside(&testbed().namespace("1"));
        command.args([
            "curl",
            "-sk",
            "--max-time",
            "3",
            &format!("https://{target}/"),
        ]);
        let asked = run(&mut command, PATIENCE);
        if asked.status.success() {
            Ok(())
        } else {
            Err(asked.to_string())
        }
    });
}

/// Checks that tp refuses at once, with the reason.
#[track_caller]
fn assert_dial_refused(workstation: &Workstation, target: &str, why: &str) {
    let failed = || text(&workstation.status()["datapath"]["last_failed_dial"]);
    // The manager may not know of the endpoints yet.
    let refused = eventually("the refusal", CHANGE_TIMEOUT, || {
        let refused = workstation.echo(&["connect", "-timeout", "5s", target]);
        match refused["error"].as_str() {
            Some("") => Err(refused.to_string()),
            _ if !failed().contains(why) => Err(failed()),
            _ => Ok(refused),
        }
    });
    assert!(
        refused["elapsed_ms"].as_f64() < Some(AT_ONCE_MS),
        "{refused}"
    );
}

#[test]
fn a_service_that_leads_to_a_node_is_not_reached_through_it() {
    let workstation = Workstation::connected(Account::Root, "admin", "shop", &[]);
    let node = testbed().object("default", "node", "node2");
    let addresses = node["status"]["addresses"].as_array();
    let mut addresses = addresses.into_iter().flatten();
    let internal = addresses.find(|address| address["type"] == "InternalIP");
    let address = text(&internal.expect("a node has an address")["address"]);
    let _led = service_led_to("shop", &address, KUBELET);
    let target = format!("{}:{KUBELET}", testbed().service_ip("shop", "e2e-led"));
    opens_for_a_node(&target);

    assert_dial_refused(&workstation, &target, &format!("{address} is a node's"));
}

#[test]
fn a_service_that_leads_to_pods_of_others_takes_a_right_to_all_namespaces() {
    let limited = Workstation::connected(Account::Member, "limited", "team-b", &[]);
    let _led = service_led_to("team-b", &testbed().pod_ip("shop", "cell"), 7000);
    let target = format!("{}:7000", testbed().service_ip("team-b", "e2e-led"));

    assert_dial_refused(&limited, &target, "in all namespaces");
}

#[test]
fn an_address_among_the_pods_that_no_pod_has_is_unreachable() {
    let workstation = Workstation::connected(Account::Root, "admin", "shop", &[]);
    let network = text(&testbed().object("default", "node", "node1")["spec"]["podCIDR"]);
    let (prefix, _) = network.rsplit_once('.').expect("a network of IPv4");
    let address = format!("{prefix}.250");
    let _of_node = OfNode::add(&address);
    let target = format!("{address}:{KUBELET}");
    opens_for_a_node(&target);

    assert_dial_refused(&workstation, &target, "no pod or service has it");
}

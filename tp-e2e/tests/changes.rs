//! Connections while the cluster changes: known names stay, new ones appear, old ones go.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use tp_e2e::{
    applied::{Applied, Subject, right},
    cluster::testbed,
    process::{Running, eventually},
    user::Account,
    workstation::Workstation,
};

/// Rights are checked every 5 s; a namespace ends after all its objects.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
const ROUNDS: usize = 5;

/// Asks a name server 50 times a second, until its input ends, for names with expected addresses;
/// prints the number of queries and the wrong answers.
const ASK: &str = r#"
import json, select, socket, struct, sys, time
server, pairs = sys.argv[1], [pair.split("=") for pair in sys.argv[2:]]
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.connect((server, 53))
asker.settimeout(2)
begin, asked, wrong = time.monotonic(), 0, []
while not select.select([sys.stdin], [], [], 0)[0]:
    name, address = pairs[asked % len(pairs)]
    labels = b"".join(bytes([len(it)]) + it.encode() for it in name.split("."))
    head = struct.pack("!6H", asked & 0xffff, 0x100, 1, 0, 0, 0)
    asker.send(head + labels + b"\0\0\1\0\1")
    try:
        answer = asker.recv(4096)
        while answer[:2] != head[:2]:
            answer = asker.recv(4096)
        found = socket.inet_ntoa(answer[-4:]) if answer[6:8] == b"\0\1" else "code %d" % (answer[3] & 15)
    except OSError as error:
        found = str(error)
    asked += 1
    if found != address:
        wrong.append([round(time.monotonic() - begin, 2), name, found])
    time.sleep(max(0, begin + asked / 50 - time.monotonic()))
print(json.dumps({"asked": asked, "wrong": wrong[:20], "wrongs": len(wrong)}))
"#;

/// Objects that are removed when this is dropped.
struct Changed(Vec<Applied>);

impl Changed {
    fn make(&mut self, manifest: &str, deletion: &[&str]) {
        self.0.push(Applied::new(manifest, deletion));
    }

    /// An empty node, with a block of pod addresses.
    fn node(&mut self, name: &str, block: &str) {
        self.make(
            &format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, \
                 spec: {{podCIDR: {block}, podCIDRs: [{block}], unschedulable: true, \
                 taints: [{{key: e2e, effect: NoSchedule}}]}}}}"
            ),
            &["node", name],
        );
    }

    /// A pod that runs nowhere, with an address.
    fn pod(&mut self, name: &str, address: &str) {
        self.make(
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, \
                 spec: {{schedulerName: nobody, containers: [{{name: none, image: none}}]}}}}"
            ),
            &["pod", name, "--namespace=shop"],
        );
        let status = format!(
            "{{\"status\":{{\"podIPs\":[{{\"ip\":\"{address}\"}}],\"podIP\":\"{address}\"}}}}"
        );
        testbed().kubectl(&[
            "patch",
            "pod",
            name,
            "--namespace=shop",
            "--subresource=status",
            "--type=merge",
            "--patch",
            &status,
        ]);
    }
}

fn keep_asking(workstation: &Workstation, names: &[(String, String)]) -> Running {
    let pairs = names
        .iter()
        .map(|(name, address)| format!("{name}={address}"));
    let mut command: Command = workstation.command(&[
        "/usr/bin/python3",
        "-c",
        ASK,
        testbed_name_server().as_str(),
    ]);
    command.args(pairs);
    Running::start(&mut command)
}

/// The first name server in the workstation's resolv.conf.
fn testbed_name_server() -> String {
    let text = std::fs::read_to_string(testbed().resolv_conf()).expect("the testbed wrote it");
    let server = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "));
    server
        .expect("resolv.conf names a server")
        .trim()
        .to_owned()
}

#[track_caller]
fn await_resolving(workstation: &Workstation, name: &str, expected: bool) {
    eventually(
        &format!("{name} to resolve: {expected}"),
        CHANGE_TIMEOUT,
        || {
            let found = workstation.run(&["getent", "ahostsv4", name]);
            if (found.code() == 0) == expected {
                Ok(())
            } else {
                Err(found.to_string())
            }
        },
    );
}

#[track_caller]
fn await_steering(workstation: &Workstation, network: &str, expected: bool) {
    eventually(
        &format!("{network} steered: {expected}"),
        CHANGE_TIMEOUT,
        || {
            let status = workstation.status();
            if status.to_string().contains(network) == expected {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    );
}

/// Adds and removes a namespace with a service, a right in it, a node with a block of pod
/// addresses, and a pod outside of all blocks: names that stay are always answered correctly.
fn names_stay(person: &str, connected: &str, stay: &[(&str, &str)]) {
    let workstation = Workstation::connected(Account::Member, person, connected, &[]);
    let stay: Vec<(String, String)> = stay
        .iter()
        .flat_map(|(namespace, service)| {
            let address = testbed().service_ip(namespace, service);
            let full = format!("{service}.{namespace}.svc.cluster.local");
            [format!("{service}.{namespace}"), full].map(|name| (name, address.clone()))
        })
        .collect();
    let begin = Instant::now();
    let mut asking = keep_asking(&workstation, &stay);
    let mut changes = 0;
    let mut made = Changed(Vec::new());
    for round in 0..ROUNDS {
        let namespace = format!("e2e-later-{person}-{round}");
        let service = format!("late.{namespace}");
        made.make(
            &format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}\n---\n\
                 {{apiVersion: v1, kind: Service, metadata: {{name: late, namespace: {namespace}}}, \
                 spec: {{ports: [{{port: 80}}]}}}}\n{}",
                right("late", &namespace, Subject::User(person))
            ),
            &["namespace", &namespace],
        );
        await_resolving(&workstation, &service, true);
        let block = format!("10.98.{}.0/24", round * 2);
        if round % 2 == 0 {
            made.node(&format!("e2e-node-{round}"), &block);
        } else {
            made.pod(&format!("e2e-pod-{round}"), &block.replace("0/24", "7"));
        }
        await_steering(&workstation, &block, true);
        changes += 2;
        if round % 2 == 0 {
            testbed().take_right("late", &namespace);
            await_resolving(&workstation, &service, false);
            changes += 1;
        }
        made.0.clear();
        await_steering(&workstation, &block, false);
        await_resolving(&workstation, &service, false);
        changes += 2;
    }
    drop(asking.stdin());
    let said = asking.finish(CHANGE_TIMEOUT);
    let seen = said.json();

    assert!(changes >= 20, "{changes} changes");
    assert_eq!(seen["wrongs"], 0, "{said}");
    let asked = seen["asked"].as_u64().unwrap_or_default();
    let least = begin.elapsed().as_secs() * 25;
    assert!(asked > least, "only {asked} queries, not {least}: {said}");
}

#[test]
fn names_that_stay_are_answered_without_a_hole_while_the_cluster_changes() {
    names_stay("dev", "shop", &[("shop", "web"), ("team-b", "echo")]);
}

#[test]
fn names_that_stay_are_answered_without_a_hole_for_a_user_of_one_namespace() {
    names_stay("limited", "team-b", &[("team-b", "echo")]);
}

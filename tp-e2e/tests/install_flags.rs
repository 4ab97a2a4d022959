//! The objects of each flag of `tp install`, which an install with other flags removes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde_json::Value;
use tp_e2e::{
    cluster::{testbed, text},
    files::file_with,
    installation::with_tp_afterwards,
    process::{PATIENCE, run},
    user::Account,
    workstation::Workstation,
};

const NODE: &str = "172.30.0.11";
const UNINSTALL: [&str; 3] = ["uninstall", "--everything", "--yes"];

/// Runs a test that installs tp in its own way, perhaps in another namespace.
fn with_other_installations(test: impl FnOnce()) {
    testbed().install_tp();
    with_tp_afterwards(|| {
        let result = catch_unwind(AssertUnwindSafe(test));
        if let Err(failure) = result {
            // Only one installation can exist, and the next test wants the usual one.
            let elsewhere = ["--manager-namespace", "tp-elsewhere"];
            let _ = testbed().tp(&[&UNINSTALL[..], &elsewhere].concat());
            resume_unwind(failure);
        }
    });
}

/// The types of the managers' own services.
fn exposed() -> Vec<String> {
    let list = testbed().kubectl(&["get", "services", "--namespace=tp-system", "--output=json"]);
    let list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
    list["items"]
        .as_array()
        .expect("a list has items")
        .iter()
        .filter(|service| service["metadata"]["name"] != "tp-manager")
        .map(|service| text(&service["spec"]["type"]))
        .collect()
}

fn namespaces() -> String {
    testbed().kubectl(&["get", "namespaces", "--output=name"])
}

/// The settings of the flags, read from the cluster.
#[derive(Debug, PartialEq, Eq)]
struct Installed {
    replicas: Option<u64>,
    pull_policy: String,
    arguments: Vec<String>,
    connect_groups: Vec<String>,
    exposed: Vec<String>,
}

impl Installed {
    fn read() -> Self {
        let texts = |values: &Value, field: &str| -> Vec<String> {
            let values = values.as_array().cloned().unwrap_or_default();
            values
                .iter()
                .map(|value| text(value.get(field).unwrap_or(value)))
                .collect()
        };
        let set = testbed().object("tp-system", "statefulset", "tp-manager");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let binding = testbed().object("tp-system", "rolebinding", "tp-connect");
        Self {
            replicas: set["spec"]["replicas"].as_u64(),
            pull_policy: text(&container["imagePullPolicy"]),
            arguments: texts(&container["args"], ""),
            connect_groups: texts(&binding["subjects"], "name"),
            exposed: exposed(),
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn each_flag_makes_its_field_and_the_next_install_takes_it_away() {
    with_other_installations(|| {
        testbed()
            .tp_install(&[
                "--replicas=2",
                "--image-pull-policy=Never",
                "--connect-group=e2e-a",
                "--connect-group=e2e-b",
                "--allow=nodes",
                "--allow=api-server",
                "--wait",
            ])
            .expect_success();
        let all = Installed::read();
        testbed()
            .tp_install(&["--expose=none", "--wait"])
            .expect_success();
        let plain = Installed::read();
        testbed()
            .tp_install(&["--expose=loadbalancer", "--wait"])
            .expect_success();
        let balanced = Installed::read();

        assert_eq!(
            all,
            Installed {
                replicas: Some(2),
                pull_policy: "Never".into(),
                arguments: owned(&["--allow=nodes", "--allow=api-server"]),
                connect_groups: owned(&["e2e-a", "e2e-b"]),
                exposed: owned(&["NodePort", "NodePort"]),
            }
        );
        let mut expected = Installed {
            replicas: Some(1),
            pull_policy: "IfNotPresent".into(),
            arguments: Vec::new(),
            connect_groups: Vec::new(),
            exposed: Vec::new(),
        };
        assert_eq!(plain, expected);
        expected.exposed = owned(&["LoadBalancer"]);
        assert_eq!(balanced, expected);
    });
}

#[test]
fn the_address_of_a_load_balancer_leads_to_the_manager() {
    let workstation = Workstation::new(Account::Member, "dev");
    with_other_installations(|| {
        testbed()
            .tp_install(&["--expose=loadbalancer", "--wait"])
            .expect_success();
        // The part of a provider's load balancer; kube-proxy makes the address work.
        testbed().kubectl(&[
            "patch",
            "service",
            "tp-manager-0",
            "--namespace=tp-system",
            "--subresource=status",
            "--type=merge",
            &format!(
                "--patch={{\"status\":{{\"loadBalancer\":{{\"ingress\":[{{\"ip\":\"{NODE}\"}}]}}}}}}"
            ),
        ]);

        workstation.connect(&["--namespace", "shop", "--transport", "udp"]);

        let status = workstation.status();
        assert_eq!(status["transport"]["path"], "udp", "{status}");
        assert_eq!(
            status["transport"]["remote"],
            format!("{NODE}:7071"),
            "{status}"
        );
        workstation.tp(&["quit"]).expect_success();
    });
}

#[test]
fn a_dry_run_prints_what_is_applied_in_each_format() {
    with_other_installations(|| {
        let flags = ["--replicas=2", "--expose=loadbalancer", "--allow=nodes"];
        testbed()
            .tp_install(&[&flags[..], &["--wait"]].concat())
            .expect_success();
        let printed = |format: &str| {
            let more = ["--dry-run", "--output", format];
            testbed()
                .tp_install(&[&flags[..], &more].concat())
                .expect_success()
        };

        let yaml = printed("yaml");
        assert_eq!(printed("text"), yaml);
        let documents: Vec<Value> = format!("\n{yaml}")
            .split("\n---\n")
            .filter(|document| !document.trim().is_empty())
            .map(|document| serde_norway::from_str(document).expect("each document is YAML"))
            .collect();
        let json = printed("json");
        let list: Value = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!(list["kind"], "List");
        assert!(documents.len() > 15, "{}", documents.len());
        assert_eq!(list["items"].as_array(), Some(&documents));

        for text in [yaml, json] {
            let file = file_with(&text);
            let mut diff =
                testbed().kubectl_command(&["diff", "--server-side", "--field-manager=tp"]);
            diff.arg("--filename").arg(file.path());
            let difference = run(&mut diff, PATIENCE);
            assert_eq!(difference.code(), 0, "{difference}");
        }
    });
}

#[test]
fn another_namespace_holds_the_one_installation_of_a_cluster() {
    let mut workstation = Workstation::new(Account::Member, "dev");
    // One connect is refused.
    workstation.may_warn();
    with_other_installations(|| {
        testbed().uninstall_everything();
        let elsewhere = ["--manager-namespace", "tp-elsewhere"];

        testbed()
            .tp_install(&[&elsewhere[..], &["--wait"]].concat())
            .expect_success();
        let refused = testbed().tp_install(&[]);
        assert_eq!(refused.code(), 1, "{refused}");
        assert!(
            refused.stderr.contains("--manager-namespace tp-elsewhere"),
            "{refused}"
        );
        assert!(refused.sentence().starts_with("tp: "), "{refused}");
        assert!(!namespaces().contains("tp-system"), "{}", namespaces());

        let refused = workstation.tp(&["connect", "--namespace", "shop"]);
        assert_eq!(refused.code(), 77, "{refused}");
        assert!(refused.stderr.contains("--manager-namespace"), "{refused}");
        let grant = [
            "grant",
            "dev",
            "-n",
            "shop",
            "--manager-namespace",
            "tp-elsewhere",
        ];
        testbed().tp(&grant).expect_success();
        workstation.connect(&["--namespace", "shop", "--manager-namespace", "tp-elsewhere"]);
        assert_eq!(workstation.status()["manager"]["namespace"], "tp-elsewhere");
        let page = workstation
            .run(&["curl", "-sS", "http://web/"])
            .expect_success();
        assert!(page.contains("nginx of"), "{page}");
        workstation.tp(&["quit"]).expect_success();

        testbed()
            .tp(&[&UNINSTALL[..], &elsewhere].concat())
            .expect_success();
        assert!(!namespaces().contains("tp-elsewhere"), "{}", namespaces());
        let bindings = testbed().kubectl(&["get", "rolebindings", "-n", "shop", "-o", "name"]);
        assert!(!bindings.contains("tp-use-user-dev"), "{bindings}");
    });
}

#[test]
fn where_the_service_networks_cannot_be_found_services_are_reached_all_the_same() {
    let workstation = Workstation::new(Account::Member, "dev");
    with_other_installations(|| {
        let role: Value = serde_json::from_str(&testbed().kubectl(&[
            "get",
            "clusterrole",
            "tp-manager",
            "--output=json",
        ]))
        .expect("kubectl prints JSON");
        let mut rules = role["rules"].as_array().into_iter().flatten();
        let networks = rules.position(|rule| rule["resources"][0] == "servicecidrs");
        let networks = networks.expect("the manager may list them");
        let patch = format!("--patch=[{{\"op\":\"remove\",\"path\":\"/rules/{networks}\"}}]");
        testbed().kubectl(&["patch", "clusterrole", "tp-manager", "--type=json", &patch]);
        testbed().replace_manager();

        workstation.connect(&["--namespace", "shop"]);

        let page = workstation.run(&["curl", "-sS", "--max-time", "5", "http://web/"]);
        assert!(page.stdout.contains("nginx of"), "{page}");
        let notices = workstation.status()["notices"].to_string();
        assert!(notices.contains("service networks"), "{notices}");
        workstation.tp(&["quit"]).expect_success();
    });
    // The manager checks once a minute; its restart keeps the notice out of other tests.
    testbed().replace_manager();
}

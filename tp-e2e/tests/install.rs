//! `tp install` and `tp uninstall` against a real API server.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::Command,
    thread,
};

use serde_json::{Value, json};
use tp_e2e::{
    cluster::{Testbed, testbed},
    files::{file_with, path_of},
    installation::{ROLLOUT, image},
    objects,
    process::{Finished, PATIENCE, run},
    programs::programs,
    sessions::session_object,
    user::Account,
    workstation::Workstation,
};

/// `tp install` of an image that the nodes have.
fn install_without_pulling(flags: &[&str]) -> Finished {
    testbed().tp_install(&[&["--image-pull-policy=Never"], flags].concat())
}

/// The objects of tp with their resource versions.
fn versions(testbed: &Testbed) -> BTreeMap<String, String> {
    let list = testbed.kubectl(&[
        "get",
        "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,roles,rolebindings,\
         serviceaccounts,services,configmaps,statefulsets,daemonsets,\
         validatingadmissionpolicies,validatingadmissionpolicybindings",
        "--all-namespaces",
        "--selector=app.kubernetes.io/managed-by=tp",
        "--output=json",
    ]);
    let list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
    let items = list["items"].as_array().expect("a list has items");
    items
        .iter()
        .map(|item| {
            let metadata = &item["metadata"];
            let title = format!(
                "{} {} {}",
                item["kind"], metadata["namespace"], metadata["name"]
            );
            (title, metadata["resourceVersion"].to_string())
        })
        .collect()
}

#[test]
fn a_second_install_changes_nothing() {
    testbed().install_tp();
    install_without_pulling(&["--wait"]).expect_success();
    let before = versions(testbed());
    assert!(before.len() > 15, "{before:?}");

    install_without_pulling(&["--wait"]).expect_success();

    assert_eq!(versions(testbed()), before);
}

#[test]
fn what_a_dry_run_prints_is_what_is_applied() {
    testbed().install_tp();
    install_without_pulling(&["--wait"]).expect_success();

    let printed = file_with(&install_without_pulling(&["--dry-run"]).expect_success());
    let difference = run(
        &mut testbed().kubectl_command(&[
            "diff",
            "--server-side",
            "--field-manager=tp",
            "--filename",
            path_of(&printed),
        ]),
        PATIENCE,
    );

    assert_eq!(difference.code(), 0, "{difference}");
}

#[test]
fn another_install_converges_on_its_flags() {
    testbed().install_tp();
    let exists = |kind: &str, name: &str| {
        !testbed()
            .kubectl(&[
                "get",
                kind,
                name,
                "--namespace=tp-system",
                "--ignore-not-found",
            ])
            .is_empty()
    };

    install_without_pulling(&["--replicas=2", "--wait"]).expect_success();
    assert!(exists("service", "tp-manager-1"));
    assert!(exists("poddisruptionbudget", "tp-manager"));
    let role = testbed().object("tp-system", "role", "tp-connect");
    assert!(role["rules"].to_string().contains("tp-manager-1"), "{role}");
    let keys = testbed().object("tp-system", "configmap", "tp-manager");
    assert_ne!(keys["data"]["tp-manager-0"], keys["data"]["tp-manager-1"]);

    install_without_pulling(&["--expose=none", "--wait"]).expect_success();
    assert!(!exists("service", "tp-manager-0"));
    assert!(!exists("service", "tp-manager-1"));
    assert!(!exists("poddisruptionbudget", "tp-manager"));

    install_without_pulling(&["--wait"]).expect_success();
    assert!(exists("service", "tp-manager-0"));
    assert!(!exists("service", "tp-manager-1"));
}

#[test]
fn agents_come_to_every_node_and_go_when_they_are_not_wanted() {
    testbed().install_tp();
    let of_agents = || {
        let kinds =
            "daemonsets,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings";
        let ours = "--selector=app.kubernetes.io/managed-by=tp";
        let names = ["get", kinds, "--all-namespaces", ours, "--output=name"];
        let names = testbed().kubectl(&names);
        names.lines().filter(|it| it.contains("agent")).count()
    };
    let nodes = testbed().kubectl(&["get", "nodes", "--output=name"]);

    let bounds = ["--allow-system", "--intercept-namespaces=shop,team-b"];
    install_without_pulling(&[&bounds[..], &["--wait"]].concat()).expect_success();
    let set = testbed().object("tp-agents", "daemonset", "tp-agent");
    install_without_pulling(&["--no-agent", "--wait"]).expect_success();
    let without = of_agents();
    install_without_pulling(&["--wait"]).expect_success();

    assert_eq!(set["status"]["numberAvailable"], nodes.lines().count());
    let containers = &set["spec"]["template"]["spec"]["containers"];
    let expected = json!(["--allow-system", "--intercept-namespaces=shop,team-b"]);
    assert_eq!(containers[1]["args"], expected);
    assert_eq!(without, 0);
    assert_eq!(of_agents(), 8);
}

#[test]
fn a_rollout_that_fails_tells_the_pods_own_reason() {
    testbed().install_tp();

    let failed = testbed().tp(&[
        "install",
        "--image=localhost/no-such-image:1",
        "--image-pull-policy=Never",
        "--wait=60s",
    ]);
    // The next test needs a working manager.
    install_without_pulling(&["--wait"]).expect_success();

    assert_eq!(failed.code(), 1, "{failed}");
    assert!(failed.stderr.contains("ErrImageNeverPull"), "{failed}");
    assert!(failed.stderr.contains("tp-manager-0"), "{failed}");
}

#[test]
fn an_install_without_an_image_says_what_to_do() {
    let refused = testbed().tp(&["install"]);

    refused.assert_refused_in_one_line(2, &["--image"]);
}

#[test]
fn an_install_that_would_downgrade_is_refused() {
    testbed().install_tp();
    let label = |value: &str| {
        testbed().kubectl(&[
            "label",
            "--overwrite",
            "statefulset",
            "tp-manager",
            "--namespace=tp-system",
            &format!("app.kubernetes.io/version={value}"),
        ]);
    };

    label("99.0.0");
    let refused = install_without_pulling(&[]);
    label(env!("CARGO_PKG_VERSION"));

    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("99.0.0"), "{refused}");
}

#[test]
fn a_kubernetes_that_is_too_old_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream).lines();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        let body = json!({
            "major": "1", "minor": "29", "gitVersion": "v1.29.3", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        })
        .to_string();
        write!(
            &stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "old",
        "clusters": [{"name": "old", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "contexts": [{"name": "old", "context": {"cluster": "old", "user": "old"}}],
        "users": [{"name": "old", "user": {}}],
    });
    let kubeconfig = file_with(&config.to_string());

    let mut command = Command::new(programs().join("tp"));
    command
        .args(["install", "--image", &image()])
        .env("KUBECONFIG", kubeconfig.path());
    let refused = run(&mut command, PATIENCE);
    server.join().unwrap();

    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("v1.29.3"), "{refused}");
    assert!(refused.stderr.contains("1.30"), "{refused}");
}

#[test]
fn an_install_without_the_rights_names_the_missing_one() {
    let image = image();
    let mut install = testbed().tp_command("dev", &["install", "--image", &image]);
    let refused = run(&mut install, PATIENCE);

    assert_eq!(refused.code(), 77, "{refused}");
    assert!(refused.stderr.contains("cannot"), "{refused}");
}

#[test]
fn uninstall_asks_when_others_are_connected() {
    testbed().install_tp();
    let user = testbed().whoami("dev", &[]);
    let mut session = session_object("shop", &user, &"0".repeat(64));
    session["metadata"] = json!({"name": "e2e-other", "namespace": "shop"});
    let session = file_with(&session.to_string());
    testbed()
        .kubectl_as("dev", &["create", "--filename", path_of(&session)])
        .expect_success();

    let refused = testbed().tp(&["uninstall"]);
    testbed().kubectl(&["delete", "session", "e2e-other", "--namespace=shop"]);

    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("dev"), "{refused}");
    assert!(refused.stderr.contains("--yes"), "{refused}");
    // Nothing was removed.
    testbed().manager_ready();
}

#[test]
fn uninstall_asks_before_it_ends_the_connection_of_this_machine() {
    // The administrator is another user than the connected one.
    let workstation = Workstation::connected(Account::Root, "dev", "shop", &[]);

    let mut uninstall = workstation.command(&["tp", "uninstall", "--everything"]);
    uninstall.env("KUBECONFIG", testbed().kubeconfig("admin"));
    let refused = run(&mut uninstall, ROLLOUT);

    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("--yes"), "{refused}");
    assert_eq!(workstation.status()["state"], "connected");
}

#[test]
fn uninstalling_everything_leaves_the_cluster_as_it_was() {
    let testbed = testbed();
    testbed.install_tp();
    let first = testbed.objects_before_tp();
    testbed.uninstall_everything();
    let before = testbed.objects();
    assert!(!before.keys().any(|title| title.contains("tp-manager")));

    install_without_pulling(&["--replicas=2", "--wait"]).expect_success();
    let kept = testbed.tp(&["uninstall", "--yes"]).expect_success();
    assert!(kept.contains("removed"), "{kept}");
    let names = testbed.kubectl(&["get", "customresourcedefinitions,namespaces", "-o=name"]);
    assert!(names.contains("sessions.tp.internal"), "{names}");
    assert!(names.contains("namespace/tp-system"), "{names}");
    let roles = testbed.kubectl(&["get", "clusterroles", "--output=name"]);
    assert!(!roles.contains("tp-user"), "{roles}");

    install_without_pulling(&["--wait"]).expect_success();
    let grant = ["grant", "e2e-nobody", "--namespace", "shop"];
    testbed.tp(&grant).expect_success();
    testbed.uninstall_everything();
    let after = testbed.objects();
    for command in [&["uninstall"][..], &["uninstall", "--everything"]] {
        let refused = testbed.tp(command);
        refused.assert_refused(5, &["not installed", "nothing to remove"]);
    }
    testbed.install_tp_again();

    assert_eq!(objects::differences(&before, &after), "");
    // Anything that uninstalling always forgets would be in both snapshots.
    let last = objects::lasting(after);
    assert_eq!(objects::differences(&first, &last), "");
}

#[test]
fn a_namespace_that_was_there_before_stays_as_it_was() {
    let testbed = testbed();
    testbed.install_tp();
    testbed.uninstall_everything();
    testbed.kubectl_apply(SOMEBODYS_NAMESPACE);
    let namespace = || testbed.object("", "namespace", "tp-system");
    let before = namespace();

    let installed = install_without_pulling(&["--wait"]).expect_success();
    let meanwhile = namespace();
    let removed = testbed.uninstall_everything();
    let after = namespace();
    testbed.kubectl(&["delete", "namespace", "tp-system"]);
    testbed.install_tp_again();

    assert_eq!(meanwhile, before);
    assert_eq!(after, before);
    for said in [installed, removed] {
        assert!(said.contains("tp-system was there before"), "{said}");
    }
}

const SOMEBODYS_NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: tp-system
  labels: {team: platform, pod-security.kubernetes.io/enforce: baseline}
  annotations: {contact: platform@example.com}
";

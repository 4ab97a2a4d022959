//! Every kind of workload, and what is spoken with it.

use tp_e2e::{
    applied::Applied,
    cluster::{testbed, text},
    process::{Finished, PATIENCE, Running, eventually, run},
    workstation::Workstation,
};

use super::support::{CHANGE, HEARD, Target, connected, may_intercept};

/// The echo server at the workstation: it calls itself so.
const HOST: &str = "workstation";

struct EchoServer {
    _server: Running,
}

impl EchoServer {
    #[track_caller]
    fn start(workstation: &Workstation) -> Self {
        let program = testbed().dir().join("bin/echo-server");
        let program = program.to_str().expect("the testbed's path is UTF-8");
        let mut command = workstation.command(&[program]);
        let mut server = Running::start(command.env("HOSTNAME", HOST));
        server.wait_for("is up", PATIENCE);

        Self { _server: server }
    }
}

/// Runs the echo client in the network of the first node.
#[track_caller]
fn echo(words: &[&str]) -> Finished {
    let mut command = testbed().inside(&testbed().namespace("1"));
    command.arg(testbed().echo_client()).args(words);

    run(&mut command, PATIENCE)
}

#[track_caller]
fn assert_answered_by(who: &str, words: &[&str]) {
    eventually("the answer", HEARD, || {
        let answer = echo(words);
        match answer.stdout.contains(who) {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    });
}

#[test]
fn http2_grpc_websocket_and_raw_bytes_pass() {
    let target = Target::new("e2e-protocols", 1);
    let workstation = connected();
    let _server = EchoServer::start(&workstation);
    workstation
        .tp(&[
            "intercept",
            target.name,
            "--port",
            "8080:8080",
            "--port",
            "9090:9090",
            "--port",
            "7000:7000",
        ])
        .expect_success();
    let address = text(&target.pods()[0]["status"]["podIP"]);

    assert_answered_by(HOST, &["http", &format!("http://{address}:8080/")]);
    assert_answered_by(HOST, &["http", "-h2c", &format!("http://{address}:8080/")]);
    for words in [
        &["ws", &format!("ws://{address}:8080/ws"), "hello"][..],
        &["grpc", &format!("{address}:9090")],
    ] {
        let answer = echo(words);
        assert!(answer.status.success(), "{answer}");
    }
    // Its probes keep what comes from the pod's own node with the container.
    let node = text(&target.pods()[0]["spec"]["nodeName"]);
    let beside = if node.ends_with('1') { "2" } else { "1" };
    let mut command = testbed().inside(&testbed().namespace(beside));
    let words = ["talk", "-send", "3000000", "-half-close"];
    command
        .arg(testbed().echo_client())
        .args(words)
        .arg(format!("{address}:7000"));
    let answer = run(&mut command, PATIENCE).json();
    assert_eq!(answer["result"]["matches"], true, "{answer}");
    eventually("the connections to be counted", CHANGE, || {
        let status = workstation.status();
        let pod = &status["intercepts"][0]["pods"][0];
        match pod["to_workstation"].as_u64() >= Some(5) {
            true => Ok(()),
            false => Err(pod.to_string()),
        }
    });
}

/// A workload of its own, with the right of `dev` to intercept in shop.
fn workload(kind: &str, name: &str) -> Applied {
    testbed().install_tp();
    let pod = format!(
        "{{automountServiceAccountToken: false, terminationGracePeriodSeconds: 0, \
         restartPolicy: {restart}, containers: [{{name: echo, image: localhost/tp-testbed/echo:1, \
         imagePullPolicy: Never, ports: [{{name: http, containerPort: 8080}}], \
         readinessProbe: {{tcpSocket: {{port: 7000}}, periodSeconds: 1}}}}]}}",
        restart = if kind == "Job" { "Never" } else { "Always" },
    );
    let labels = format!("labels: {{app: {name}}}");
    let template = format!("template: {{metadata: {{{labels}}}, spec: {pod}}}");
    let selector = format!("selector: {{matchLabels: {{app: {name}}}}}");
    let (api, spec) = match kind {
        "Pod" => ("v1", pod),
        "Job" => ("batch/v1", format!("{{{template}}}")),
        "StatefulSet" => (
            "apps/v1",
            format!("{{serviceName: {name}, {selector}, {template}}}"),
        ),
        _ => ("apps/v1", format!("{{{selector}, {template}}}")),
    };
    let manifest = format!(
        "{{apiVersion: {api}, kind: {kind}, metadata: {{name: {name}, namespace: shop, {labels}}}, \
         spec: {spec}}}\n"
    ) + &may_intercept(name);
    let applied = Applied::new(
        &manifest,
        &[
            "--namespace=shop",
            &format!("{kind}/{name}"),
            &format!("rolebinding/{name}"),
        ],
    );
    let selector = format!("--selector=app={name}");
    eventually("the pod", PATIENCE, || {
        let wait = [
            "wait",
            "--for=condition=Ready",
            "pods",
            "--namespace=shop",
            &selector,
        ];
        let waited = run(&mut testbed().kubectl_command(&wait), PATIENCE);
        match waited.status.success() {
            true => Ok(()),
            false => Err(waited.stderr),
        }
    });

    applied
}

#[test]
fn stateful_sets_daemon_sets_jobs_replica_sets_and_bare_pods_are_intercepted() {
    let workstation = connected();
    let _server = EchoServer::start(&workstation);
    for (kind, name) in [
        ("StatefulSet", "e2e-sts"),
        ("DaemonSet", "e2e-ds"),
        ("Job", "e2e-job"),
        ("ReplicaSet", "e2e-rs"),
        ("Pod", "e2e-pod"),
    ] {
        let _workload = workload(kind, name);

        let word = format!("{}/{name}", kind.to_ascii_lowercase());
        let made = workstation.tp(&["intercept", &word, "--name", name, "--port", "8080"]);

        let made = made.expect_success();
        assert!(made.contains(&format!("Intercepted {word}")), "{made}");
        let address = testbed().pod_ip("shop", name);
        assert_answered_by(HOST, &["http", &format!("http://{address}:8080/")]);
        workstation.tp(&["leave", name]).expect_success();
        assert_answered_by("e2e-", &["http", &format!("http://{address}:8080/")]);
    }
}

#[test]
fn a_service_its_port_and_its_target_port_mean_the_same() {
    let target = Target::new("e2e-service", 1);
    let workstation = connected();
    let _server = EchoServer::start(&workstation);

    for (workload, port) in [
        ("svc/e2e-service", "8080:80"),
        ("svc/e2e-service", "8080:http"),
        ("deploy/e2e-service", "8080:8080"),
        ("e2e-service", "8080:http"),
    ] {
        let made = workstation.tp(&["intercept", workload, "--name", "same", "--port", port]);

        let said = made.expect_success();
        assert!(
            said.contains("port 8080 (http) -> 127.0.0.1:8080"),
            "{said}"
        );
        assert_answered_by(HOST, &["http", &target.url()]);
        workstation.tp(&["leave", "same"]).expect_success();
    }
}

#[test]
fn who_names_a_pod_of_a_deployment_gets_that_pod_alone() {
    let target = Target::new("e2e-pod-of", 2);
    let workstation = connected();
    let _server = EchoServer::start(&workstation);
    let pods = target.pods();
    let name = text(&pods[0]["metadata"]["name"]);
    let url = |pod: &serde_json::Value| format!("http://{}:8080/", text(&pod["status"]["podIP"]));

    let workload = format!("pod/{name}");
    workstation
        .tp(&[
            "intercept",
            &workload,
            "--name",
            "one",
            "--port",
            "8080:http",
        ])
        .expect_success();

    assert_answered_by(HOST, &["http", &url(&pods[0])]);
    assert_answered_by("e2e-pod-of", &["http", &url(&pods[1])]);
}

//! Intercepts begin and end.

use rustix::process::Signal;
use tp_e2e::{
    cluster::testbed,
    process::{PATIENCE, eventually, run, signal},
};

use super::support::{
    CHANGE, ECHO, FROM_WORKSTATION, HTTP, Handler, Target, ask, connected, expect_pod,
    expect_pod_after_lease, expect_workstation,
};

/// The Intercepts of a workload.
#[track_caller]
fn objects(workload: &str) -> Vec<String> {
    let listed = testbed().kubectl(&["get", "intercepts", "--namespace=shop", "--output=name"]);
    let of_workload = listed.lines().filter(|line| line.contains(workload));

    of_workload.map(str::to_owned).collect()
}

#[test]
fn the_traffic_of_a_deployment_comes_to_the_workstation_until_it_is_left() {
    let target = Target::new("e2e-one", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18080);
    let url = target.url();
    expect_pod(&url);

    let made = workstation.tp(&["intercept", "e2e-one", "--port", "18080:http"]);

    let said = made.expect_success();
    assert!(said.contains("Intercepted deployment/e2e-one"), "{said}");
    // At once: it was seen to take a connection.
    assert_eq!(ask(&url).stdout, FROM_WORKSTATION);
    let status = workstation.status();
    let intercept = &status["intercepts"][0];
    assert_eq!(intercept["state"], "active", "{status}");
    assert_eq!(intercept["ports"][0]["port"], HTTP, "{status}");
    let listed = testbed().kubectl(&["get", "intercepts", "--namespace=shop"]);
    assert!(listed.contains("e2e-one"), "{listed}");
    // Another port of the same pod.
    let address = testbed().service_ip("shop", target.name);
    let mut other = testbed().inside(&testbed().namespace("1"));
    other
        .arg(testbed().echo_client())
        .args(["connect", &format!("{address}:{ECHO}")]);
    run(&mut other, PATIENCE).expect_success();

    workstation.tp(&["leave", "e2e-one"]).expect_success();

    expect_pod(&url);
    assert_eq!(target.restarts(), 0);
    assert_eq!(workstation.status()["intercepts"], serde_json::json!([]));
    assert_eq!(objects("e2e-one"), Vec::<String>::new());
}

#[test]
fn every_replica_on_every_node_is_intercepted_and_new_ones_join() {
    let target = Target::new("e2e-four", 4);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18081);

    workstation
        .tp(&["intercept", "e2e-four", "--port", "18081:8080"])
        .expect_success();

    for url in target.pod_urls() {
        assert_eq!(ask(&url).stdout, FROM_WORKSTATION, "{url}");
    }
    scale(&target, 1);
    scale(&target, 3);
    eventually("each pod to be intercepted", CHANGE, || {
        let urls = target.pod_urls();
        match urls.len() == 3 && urls.iter().all(|url| ask(url).stdout == FROM_WORKSTATION) {
            true => Ok(()),
            false => Err(format!("{urls:?}")),
        }
    });
    workstation.tp(&["leave", "e2e-four"]).expect_success();
    for url in target.pod_urls() {
        expect_pod(&url);
    }
}

#[track_caller]
fn scale(target: &Target, replicas: usize) {
    let deployment = format!("deployment/{}", target.name);
    let replicas_flag = format!("--replicas={replicas}");
    testbed().kubectl(&["scale", &deployment, &replicas_flag, "--namespace=shop"]);
    target.wait_for_rollout();
    eventually("the replicas", CHANGE, || match target.pods().len() {
        there if there == replicas => Ok(()),
        there => Err(there.to_string()),
    });
}

#[test]
fn a_port_where_nothing_listens_refuses_as_the_workstation_does() {
    let target = Target::new("e2e-closed", 1);
    let workstation = connected();
    let url = target.url();

    let made = workstation.tp(&["intercept", "e2e-closed", "--port", "18082:http"]);
    assert!(
        made.stderr.contains("nothing listens at 127.0.0.1:18082"),
        "{made}"
    );
    made.expect_success();

    let refused = ask(&url);
    assert_eq!(refused.code(), 7, "{refused}");
    let _handler = Handler::start(&workstation, 18082);
    expect_workstation(&url);
}

#[test]
fn with_when_down_container_the_pod_serves_while_nothing_listens() {
    let target = Target::new("e2e-when-down", 1);
    let workstation = connected();
    let url = target.url();

    let words = [
        "intercept",
        "e2e-when-down",
        "--port",
        "18083:http",
        "--when-down",
        "container",
    ];
    workstation.tp(&words).expect_success();

    expect_pod(&url);
    let handler = Handler::start(&workstation, 18083);
    expect_workstation(&url);
    drop(handler);
    expect_pod(&url);
}

#[test]
fn an_intercept_ends_with_its_command_whose_exit_code_it_has() {
    let target = Target::new("e2e-command", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18084);
    let url = target.url();
    let script = "tp status -o json | grep -q '\"active\"' && exit 42";

    let ended = workstation.tp(&[
        "intercept",
        "e2e-command",
        "--port",
        "18084:http",
        "--",
        "sh",
        "-c",
        script,
    ]);

    assert_eq!(ended.code(), 42, "{ended}");
    expect_pod(&url);
    assert_eq!(workstation.status()["intercepts"], serde_json::json!([]));
}

#[test]
fn the_pod_serves_again_when_the_session_is_killed() {
    let target = Target::new("e2e-killed", 1);
    let mut workstation = connected();
    workstation.may_warn();
    let _handler = Handler::start(&workstation, 18085);
    let url = target.url();
    workstation
        .tp(&["intercept", "e2e-killed", "--port", "18085:http"])
        .expect_success();
    assert_eq!(ask(&url).stdout, FROM_WORKSTATION);

    signal(workstation.session_pid(), Signal::KILL);

    expect_pod_after_lease(&url);
}

#[test]
fn quitting_ends_the_intercepts_of_the_session() {
    let target = Target::new("e2e-quit", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18086);
    let url = target.url();
    workstation
        .tp(&["intercept", "e2e-quit", "--port", "18086:http"])
        .expect_success();

    workstation.tp(&["quit"]).expect_success();

    expect_pod(&url);
    assert_eq!(objects("e2e-quit"), Vec::<String>::new());
}

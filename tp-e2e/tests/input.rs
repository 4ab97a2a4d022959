//! Bad input and failures: one sentence that names the thing and the remedy, the documented exit
//! code, nothing half-done.

use std::{fs, time::Duration};

use tp_e2e::{
    cluster::{Impairment, testbed},
    installation::with_tp_afterwards,
    lock::{alone, undisturbed},
    process::{Finished, eventually, run},
    user::Account,
    workstation::Workstation,
};

/// A developer whose logs may hold warnings about refusals.
fn developer() -> Workstation {
    let mut workstation = Workstation::new(Account::Member, "dev");
    workstation.may_warn();
    workstation
}

/// Checks that connecting is refused with this code, in one sentence with these words, and that
/// nothing runs afterwards.
#[track_caller]
fn assert_connect_refused(workstation: &Workstation, flags: &[&str], code: i32, words: &[&str]) {
    let words_of_command = [&["tp", "connect"], flags].concat();
    let finished = run(
        &mut workstation.command(&words_of_command),
        Duration::from_secs(40),
    );
    assert_refused_once(&finished, code, words);

    let after = workstation.tp(&["status"]);
    assert_eq!(after.code(), 3, "something is left running: {after}");
}

/// Refused by `tp` itself, in one sentence; steps before it may have been shown.
#[track_caller]
fn assert_refused_once(finished: &Finished, code: i32, words: &[&str]) {
    finished.assert_refused(code, words);
    let starts = finished.stderr.matches("tp: ").count();
    assert!(
        finished.sentence().starts_with("tp: ") && starts == 1,
        "{finished}"
    );
}

#[test]
fn an_absent_kubeconfig_is_named() {
    let _undisturbed = undisturbed();
    assert_connect_refused(
        &developer(),
        &["--kubeconfig", "/absent/config"],
        78,
        &["/absent/config"],
    );
}

#[test]
fn no_kubeconfig_at_all_is_explained() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    let mut command = workstation.command(&["tp", "connect"]);
    let finished = run(command.env_remove("KUBECONFIG"), Duration::from_secs(40));

    assert_refused_once(&finished, 78, &["kubeconfig"]);
}

#[test]
fn a_broken_kubeconfig_is_named() {
    let _undisturbed = undisturbed();
    let workstation = developer();

    for text in [
        "contexts: [",
        "- no\n- map\n",
        "{}",
        "current-context: nowhere\n",
    ] {
        let file = workstation.write_file("broken.yaml", text);
        let path = file.to_str().unwrap();
        assert_connect_refused(&workstation, &["--kubeconfig", path], 78, &[path]);
    }
}

#[test]
fn an_unknown_context_is_named_with_the_known_ones() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    let known = workstation
        .run(&["kubectl", "config", "current-context"])
        .expect_success();
    let known = known.trim();

    assert_connect_refused(&workstation, &["--context", "moon"], 78, &["moon", known]);
    assert_connect_refused(&workstation, &["--cluster", "mars"], 78, &["mars"]);
    assert_connect_refused(
        &workstation,
        &["--user", "nobody-here"],
        78,
        &["nobody-here"],
    );
}

#[test]
fn an_unknown_namespace_is_named() {
    let _undisturbed = undisturbed();
    let mut workstation = Workstation::new(Account::Root, "admin");
    workstation.may_warn();
    assert_connect_refused(
        &workstation,
        &["--namespace", "atlantis"],
        78,
        &["atlantis"],
    );
}

#[test]
fn an_api_server_out_of_reach_is_named() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    let config = fs::read_to_string(workstation.kubeconfig()).unwrap();
    // A closed port, and an address without a host.
    for server in ["172.30.0.11:6444", "172.30.0.99:6443"] {
        let config = config.replace("172.30.0.11:6443", server);
        let file = workstation.write_file("elsewhere.yaml", &config);
        assert_connect_refused(
            &workstation,
            &["--kubeconfig", file.to_str().unwrap()],
            69,
            &[server],
        );
    }
}

#[test]
fn an_api_server_with_another_certificate_is_refused() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    let config = fs::read_to_string(workstation.kubeconfig()).unwrap();
    let without_authority: String = config
        .lines()
        .filter(|line| !line.contains("certificate-authority-data"))
        .map(|line| format!("{line}\n"))
        .collect();
    let file = workstation.write_file("untrusted.yaml", &without_authority);

    assert_connect_refused(
        &workstation,
        &["--kubeconfig", file.to_str().unwrap()],
        69,
        &["172.30.0.11:6443"],
    );
}

#[test]
fn a_cluster_without_tp_is_told_what_installs_it() {
    let _undisturbed = undisturbed();
    let workstation = Workstation::new(Account::Root, "admin");
    assert_connect_refused(
        &workstation,
        &["--namespace", "shop", "--manager-namespace", "kube-public"],
        5,
        &["tp install", "kube-public"],
    );
}

#[test]
fn a_missing_permission_is_named() {
    let _undisturbed = undisturbed();
    let mut workstation = Workstation::new(Account::Member, "limited");
    workstation.may_warn();
    assert_connect_refused(
        &workstation,
        &["--namespace", "shop"],
        77,
        &["create", "sessions", "tp grant limited --namespace shop"],
    );
}

#[test]
fn wrong_flags_are_usage_errors() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    for flags in [
        &["--also-proxy", "10.0.0.0/99"][..],
        &["--transport", "pigeon"],
        &["--nonsense"],
        &["--as-group", "devs"],
    ] {
        let finished = workstation.tp(&[&["connect"], flags].concat());
        assert_eq!(finished.code(), 2, "{finished}");
    }
}

#[test]
fn an_absent_root_daemon_and_a_refused_sudo_are_explained() {
    let _undisturbed = undisturbed();
    let mut workstation = Workstation::without_root_daemon(Account::Outsider, "dev");
    workstation.may_warn();

    let finished = workstation.tp(&["connect", "--namespace", "shop"]);

    assert_refused_once(&finished, 69, &["root daemon", "sudo"]);
    workstation.tp(&["status"]).expect_code(3);
}

#[test]
fn a_second_connect_elsewhere_says_where_one_is_connected() {
    let _undisturbed = undisturbed();
    let workstation = developer();
    workstation.connect(&["--namespace", "shop"]);

    workstation
        .tp(&["connect", "--namespace", "shop"])
        .expect_success();
    let elsewhere = workstation.tp(&["connect", "--namespace", "team-b"]);

    assert_refused_once(&elsewhere, 4, &["shop", "tp quit"]);
    assert_eq!(workstation.status()["namespace"], "shop");
}

#[test]
fn quitting_without_a_connection_says_so() {
    let _undisturbed = undisturbed();
    let workstation = developer();

    let finished = workstation.tp(&["quit"]);

    // The requested state already holds.
    assert_eq!(finished.code(), 0, "{finished}");
    assert_eq!(finished.stdout, "Not connected\n", "{finished}");
}

#[test]
fn commands_that_need_a_connection_say_so() {
    let _undisturbed = undisturbed();
    let workstation = developer();

    let listed = workstation.tp(&["list"]);

    assert_refused_once(&listed, 3, &["tp connect"]);
}

#[test]
fn errors_are_objects_when_json_is_asked_for() {
    let _undisturbed = undisturbed();
    let workstation = developer();

    let finished = workstation.tp(&["connect", "--context", "moon", "--output", "json"]);

    assert_eq!(finished.stdout, "", "{finished}");
    let error: serde_json::Value = serde_json::from_str(&finished.stderr).expect("JSON");
    let error = &error["error"];
    assert_eq!(error["kind"], "config", "{finished}");
    assert!(error["message"].to_string().contains("moon"), "{finished}");
    assert_eq!(finished.code(), 78);
}

#[test]
fn an_api_server_that_falls_silent_while_connecting_is_reported_in_time() {
    let workstation = developer();
    let _alone = alone();
    let _away = testbed().impair(Impairment::ApiServerAway);

    assert_connect_refused(
        &workstation,
        &["--namespace", "shop"],
        69,
        &["172.30.0.11:6443"],
    );
}

#[test]
fn a_manager_that_is_not_ready_is_reported_with_its_pods_reason() {
    let workstation = developer();
    let _alone = alone();
    let manager = ["statefulset/tp-manager", "--namespace=tp-system"];
    with_tp_afterwards(|| {
        testbed().kubectl(&[&["set", "image"], &manager[..], &["*=localhost/absent:1"]].concat());
        testbed().delete_manager();
        eventually("the pod to lack its image", Duration::from_secs(30), || {
            let pods =
                testbed().kubectl(&["get", "pods", "--namespace=tp-system", "--output=json"]);
            if pods.contains("ErrImageNeverPull") {
                Ok(())
            } else {
                Err(pods)
            }
        });
        assert_connect_refused(
            &workstation,
            &["--namespace", "shop"],
            75,
            &["tp-manager-0", "ErrImageNeverPull"],
        );
    });
    testbed().manager_ready();
}

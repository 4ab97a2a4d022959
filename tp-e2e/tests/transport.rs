//! The two paths of the tunnel: UDP when it answers, the port-forward otherwise.

use std::time::Duration;

use serde_json::{Value, json};
use tp_e2e::{
    api_server::OlderApiServer,
    cluster::{Impairment, testbed, text},
    lock::alone,
    process::run,
    user::Account,
    workstation::Workstation,
};

fn connected_to_shop(flags: &[&str]) -> Workstation {
    Workstation::connected(Account::Member, "dev", "shop", flags)
}

#[track_caller]
fn transfers_are_whole(workstation: &Workstation) {
    let seen = workstation.exchange(8 << 20);
    assert_eq!(seen["matches"], true, "{seen}");
    assert_eq!(seen["received"], 8 << 20, "{seen}");
    assert_eq!(seen["end"], "fin", "{seen}");
}

#[test]
fn the_udp_path_is_used_when_it_answers() {
    let _alone = alone();
    let workstation = connected_to_shop(&[]);

    let transport = workstation.expect_path("udp");

    assert_eq!(transport["reason"], "", "{transport}");
    assert!(
        text(&transport["remote"]).starts_with("172.30.0.1"),
        "{transport}"
    );
    assert!(transport["rtt_ms"].as_f64() > Some(0.0), "{transport}");
    transfers_are_whole(&workstation);
}

#[test]
fn the_port_forward_carries_everything_when_udp_is_lost() {
    let _alone = alone();
    for impairment in [
        Impairment::UdpLost,
        Impairment::UdpLostOutward,
        Impairment::UdpLostInward,
    ] {
        let workstation = connected_to_shop(&[]);
        // The company's name server is on this machine and its questions do not pass the wire.
        let _impaired = testbed().impair(impairment);
        let workstation_two = connected_to_shop(&[]);

        for workstation in [&workstation, &workstation_two] {
            let transport = workstation.expect_path("portforward");
            assert_ne!(transport["reason"], "", "{impairment:?}: {transport}");
            transfers_are_whole(workstation);
        }
    }
}

#[test]
fn connecting_without_udp_says_that_the_port_forward_is_used_and_why() {
    let _alone = alone();
    let _impaired = testbed().impair(Impairment::UdpLost);
    let workstation = Workstation::new(Account::Member, "dev");

    let connected = workstation.connect(&["--namespace", "shop"]);

    let line = connected.stdout.lines().nth(1).unwrap_or_default();
    assert!(
        line.contains(" can be reached, through the port-forward to tp-manager-"),
        "{connected}"
    );
    // UDP is being tried, or has been tried.
    assert!(line.contains("by UDP from 172.30.0."), "{connected}");
}

#[test]
fn the_port_forward_alone_is_used_when_told_so() {
    let _alone = alone();
    let workstation = connected_to_shop(&["--transport", "portforward"]);

    transfers_are_whole(&workstation);
    let transport = workstation.expect_path("portforward");

    assert_ne!(transport["reason"], "", "{transport}");
    let remote = text(&transport["remote"]);
    assert!(remote.starts_with("tp-manager-"), "{transport}");
    let log = workstation.session_log();
    assert!(log.contains("SPDY/3.1+portforward.k8s.io"), "{log}");
}

#[test]
fn an_api_server_before_1_31_forwards_ports_too() {
    let _alone = alone();
    let server = OlderApiServer::start();
    let workstation = Workstation::new(Account::Member, "dev");
    server.serve(workstation.kubeconfig());

    workstation.connect(&["--namespace", "shop", "--transport", "portforward"]);

    transfers_are_whole(&workstation);
    workstation.expect_path("portforward");
    let log = workstation.session_log();
    assert!(log.contains("v4.channel.k8s.io"), "{log}");
}

#[test]
fn no_data_takes_the_port_forward_when_udp_is_demanded() {
    let _alone = alone();
    let workstation = connected_to_shop(&["--transport", "udp"]);

    let transport = workstation.expect_path("udp");

    assert_eq!(transport["reason"], "", "{transport}");
    transfers_are_whole(&workstation);
}

#[test]
fn demanding_udp_where_it_is_lost_fails_with_a_sentence() {
    let _alone = alone();
    let _impaired = testbed().impair(Impairment::UdpLost);
    let mut workstation = Workstation::new(Account::Member, "dev");
    workstation.may_warn();

    let mut command =
        workstation.command(&["tp", "connect", "--namespace=shop", "--transport=udp"]);
    let refused = run(&mut command, Duration::from_secs(30));

    assert_eq!(refused.code(), 69, "{refused}");
    assert!(refused.stderr.contains("UDP"), "{refused}");
    workstation.tp(&["status"]).expect_code(3);
}

#[test]
fn losing_udp_in_mid_transfer_never_looks_like_a_clean_end() {
    let _alone = alone();
    let mut workstation = connected_to_shop(&[]);
    workstation.may_warn();
    workstation.expect_path("udp");
    let size = 24 << 20;
    let words = [
        "talk",
        "-mark",
        "4000000",
        "echo:7001",
        "drip",
        &size.to_string(),
    ];
    let mut transfer = workstation.start_echo(&words);
    transfer.wait_for("mark", Duration::from_secs(15));

    let impaired = testbed().impair(Impairment::UdpLost);
    workstation.expect_path("portforward");
    transfers_are_whole(&workstation);

    let seen = transfer.finish(Duration::from_secs(60)).json()["result"].clone();
    let whole = seen["received"] == size && seen["end"] == "fin";
    let broken = seen["end"] != "fin" && seen["end"] != "timeout";
    assert!(whole || broken, "{seen}");
    drop(impaired);
    workstation.expect_path("udp");
    transfers_are_whole(&workstation);
}

#[test]
fn the_api_server_away_does_not_stop_flows_on_udp() {
    let _alone = alone();
    let mut workstation = connected_to_shop(&[]);
    workstation.may_warn();
    workstation.expect_path("udp");
    let _away = testbed().impair(Impairment::ApiServerAway);

    for _ in 0..3 {
        transfers_are_whole(&workstation);
    }
}

/// The managers' UDP ports are closed to the outside, until this is dropped.
struct Unexposed(Vec<(String, u64)>);

impl Unexposed {
    fn begin() -> Self {
        let words = ["get", "services", "--namespace=tp-system", "--output=json"];
        let services: Value =
            serde_json::from_str(&testbed().kubectl(&words)).expect("kubectl speaks JSON");
        let exposed: Vec<_> = services["items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|service| service["spec"]["type"] == "NodePort")
            .map(|service| {
                let port = &service["spec"]["ports"][0]["nodePort"];
                let port = port.as_u64().expect("a number");
                (text(&service["metadata"]["name"]), port)
            })
            .collect();
        assert!(!exposed.is_empty(), "{services}");
        for (name, _) in &exposed {
            Self::patch(name, &json!([replace("/spec/type", "ClusterIP")]));
        }

        Self(exposed)
    }

    fn patch(service: &str, patch: &Value) {
        testbed().kubectl(&[
            "patch",
            "service",
            service,
            "--namespace=tp-system",
            "--type=json",
            &format!("--patch={patch}"),
        ]);
    }
}

impl Drop for Unexposed {
    fn drop(&mut self) {
        for (name, port) in &self.0 {
            let port = json!({"op": "add", "path": "/spec/ports/0/nodePort", "value": port});
            Self::patch(name, &json!([replace("/spec/type", "NodePort"), port]));
        }
    }
}

fn replace(path: &str, value: &str) -> Value {
    json!({"op": "replace", "path": path, "value": value})
}

#[test]
fn a_way_by_udp_that_is_opened_while_connected_is_taken() {
    let _alone = alone();
    let unexposed = Unexposed::begin();
    let workstation = connected_to_shop(&[]);
    workstation.expect_path("portforward");

    drop(unexposed);

    workstation.expect_path("udp");
    transfers_are_whole(&workstation);
}

#[test]
fn the_udp_port_answers_no_stranger() {
    let _alone = alone();
    let workstation = connected_to_shop(&[]);
    let remote = text(&workstation.expect_path("udp")["remote"]);
    let padded = |head: &str| format!("{head}{}", "00".repeat(1200 - head.len() / 2));
    // The first packet of a QUIC connection; a packet of an unknown version; a short one; noise.
    let packets = [
        padded("c00000000108000102030405060708000102030405060708004200"),
        padded("c0babababa08000102030405060708080001020304050607"),
        "40000102030405060708090a0b0c0d0e0f101112131415161718".to_owned(),
        padded("7470"),
        "00".to_owned(),
    ];

    for packet in packets {
        let seen = workstation.echo(&["udp", "-hex", "-timeout", "700ms", &remote, &packet]);
        assert_eq!(seen["error"], "timeout", "{packet:.60}: {seen}");
    }
}

#[test]
fn a_manager_that_is_replaced_is_found_again() {
    let _alone = alone();
    let mut workstation = connected_to_shop(&[]);
    workstation.may_warn();

    testbed().replace_manager();

    workstation.reaches_again(Duration::from_secs(30));
}

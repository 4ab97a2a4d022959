//! `tp connect` while connected: succeeds for the same options, names the difference for others.

use tp_e2e::{cluster::testbed, files::read_json, user::Account, workstation::Workstation};

#[test]
fn a_second_connect_with_other_flags_says_which() {
    let workstation = Workstation::new(Account::Member, "dev");
    let flags = ["--namespace", "shop", "--never-proxy", "10.96.0.200/32"];
    workstation.connect(&flags);

    let connect = |flags: &[&str]| workstation.tp(&[&["connect"], flags].concat());
    connect(&flags).expect_success();
    for (more, words) in [
        (
            &["--transport", "portforward"][..],
            &["--transport portforward (not auto)", "tp quit"][..],
        ),
        (
            &["--also-proxy", "192.0.2.7"],
            &["--also-proxy 192.0.2.7/32"],
        ),
        (&["--mapped-namespaces", "shop"], &["--mapped-namespaces"]),
        (&["--as", "jane"], &["--as jane (not none)"]),
    ] {
        connect(&[&flags, more].concat()).assert_refused_in_one_line(4, words);
    }
    // Options that are not given may have any value.
    connect(&["--namespace", "shop"]).expect_success();

    assert_eq!(workstation.status()["state"], "connected");
}

/// A kubeconfig with the same names and another user's credentials.
#[test]
fn a_second_connect_as_somebody_else_says_who_is_connected() {
    let workstation = Workstation::new(Account::Member, "dev");
    let mut config = read_json(workstation.kubeconfig());
    let file = workstation.home().join("same-names.json");
    let flags = [
        "connect",
        "--namespace",
        "shop",
        "--kubeconfig",
        file.to_str().unwrap(),
    ];
    workstation.connect(&["--namespace", "shop"]);

    workstation.write_file("same-names.json", &config.to_string());
    workstation.tp(&flags).expect_success();
    let others = read_json(&testbed().kubeconfig("limited"));
    config["users"][0]["user"] = others["users"][0]["user"].clone();
    workstation.write_file("same-names.json", &config.to_string());
    workstation
        .tp(&flags)
        .assert_refused_in_one_line(4, &["user limited (not dev)"]);

    assert_eq!(workstation.status()["user"], "dev");
}

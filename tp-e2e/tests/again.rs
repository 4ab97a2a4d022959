//! `tp connect` while connected: fine for what is there, refused by name for anything else.

use std::fs;

use tp_e2e::{
    cluster::testbed,
    process::Finished,
    user::Account,
    workstation::Workstation,
};

#[track_caller]
fn refused(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code(), 4, "{finished}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "{word:?} is missing: {finished}"
        );
    }
    assert_eq!(finished.stderr.trim().lines().count(), 1, "{finished}");
}

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
        (&["--also-proxy", "192.0.2.7"], &["--also-proxy 192.0.2.7/32"]),
        (&["--mapped-namespaces", "shop"], &["--mapped-namespaces"]),
        (&["--as", "jane"], &["--as jane (not none)"]),
    ] {
        refused(&connect(&[&flags, more].concat()), words);
    }
    refused(
        &connect(&["--namespace", "shop"]),
        &["--never-proxy none (not 10.96.0.200/32)"],
    );

    assert_eq!(workstation.status()["state"], "connected");
}

/// A kubeconfig with the same names everywhere and somebody else's credentials.
#[test]
fn a_second_connect_as_somebody_else_says_who_is_connected() {
    let workstation = Workstation::new(Account::Member, "dev");
    let own = fs::read_to_string(workstation.kubeconfig()).unwrap();
    let others = fs::read_to_string(testbed().kubeconfig("limited")).unwrap();
    let file = workstation.home().join("same-names.yaml");
    let flags = [
        "connect",
        "--namespace",
        "shop",
        "--kubeconfig",
        file.to_str().unwrap(),
    ];
    workstation.connect(&["--namespace", "shop"]);

    fs::write(&file, &own).unwrap();
    Account::Member.own(&file);
    workstation.tp(&flags).expect_success();
    fs::write(&file, with_credentials_of(&own, &others)).unwrap();
    refused(&workstation.tp(&flags), &["user limited (not dev)"]);

    assert_eq!(workstation.status()["user"], "dev");
}

/// The lines of `own`, those of its credentials replaced by those of `others`.
fn with_credentials_of(own: &str, others: &str) -> String {
    let secret = |line: &&str| {
        ["client-certificate-data:", "client-key-data:", "token:"]
            .iter()
            .any(|name| line.trim_start().starts_with(name))
    };
    let mut credentials = others.lines().filter(secret);

    own.lines()
        .map(|line| match secret(&line) {
            true => credentials.next().expect("both log in in the same way"),
            false => line,
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

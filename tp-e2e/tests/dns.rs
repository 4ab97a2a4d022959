//! Names: those of the cluster resolve, all others are passed on unchanged.

use std::time::Duration;

use tp_e2e::{
    cluster::{testbed, text},
    process::eventually,
    user::Account,
    workstation::Workstation,
};

const DIG: &[&str] = &["dig", "+short", "+time=3", "+tries=1"];

#[track_caller]
fn dig_short(workstation: &Workstation, words: &[&str]) -> String {
    workstation
        .run(&[DIG, words].concat())
        .expect_success()
        .trim()
        .to_owned()
}

#[test]
fn a_service_name_is_answered_over_udp_and_tcp() {
    let workstation = Workstation::shared();
    let web = testbed().service_ip("shop", "web");

    for name in [
        "web",
        "web.shop",
        "web.shop.svc",
        "web.shop.svc.cluster.local",
    ] {
        assert_eq!(dig_short(workstation, &[name]), web, "{name} over UDP");
        assert_eq!(
            dig_short(workstation, &["+tcp", name]),
            web,
            "{name} over TCP"
        );
    }
}

#[test]
fn names_are_answered_whatever_their_case() {
    let web = testbed().service_ip("shop", "web");

    assert_eq!(
        dig_short(Workstation::shared(), &["WeB.sHoP.SVC.cluster.LOCAL"]),
        web
    );
}

#[test]
fn the_resolver_of_the_c_library_finds_services() {
    let found = Workstation::shared()
        .run(&["getent", "ahostsv4", "db.shop"])
        .expect_success();

    assert!(
        found.starts_with(&testbed().service_ip("shop", "db")),
        "{found}"
    );
}

#[test]
fn a_name_without_ipv6_address_is_an_empty_answer_and_no_error() {
    let said = Workstation::shared()
        .run(&[
            "dig",
            "+time=3",
            "+tries=1",
            "AAAA",
            "web.shop.svc.cluster.local",
        ])
        .expect_success();

    assert!(said.contains("status: NOERROR"), "{said}");
    assert!(said.contains("ANSWER: 0"), "{said}");
}

#[test]
fn pods_of_a_headless_service_have_names() {
    let workstation = Workstation::shared();
    let pod = testbed().object("shop", "pod", "cell-0");
    let address = text(&pod["status"]["podIP"]);

    for name in [
        "cell-0.cells",
        "cell-0.cells.shop",
        "cell-0.cells.shop.svc.cluster.local",
    ] {
        assert_eq!(dig_short(workstation, &[name]), address, "{name}");
    }
    let all = dig_short(workstation, &["cells.shop.svc.cluster.local"]);
    assert_eq!(all.lines().count(), 2, "{all}");
    let seen = workstation.echo(&[
        "talk",
        "-send",
        "100",
        "-half-close",
        "cell-1.cells.shop:7000",
    ]);
    assert_eq!(seen["matches"], true, "{seen}");
}

#[test]
fn ports_have_srv_records_and_addresses_have_names() {
    let workstation = Workstation::shared();
    let web = testbed().service_ip("shop", "web");

    let record = dig_short(
        workstation,
        &["SRV", "_http._tcp.web.shop.svc.cluster.local"],
    );
    assert!(
        record.ends_with("80 web.shop.svc.cluster.local."),
        "{record}"
    );
    assert_eq!(
        dig_short(workstation, &["-x", &web]),
        "web.shop.svc.cluster.local."
    );
}

#[test]
fn an_external_name_leads_to_its_target() {
    let page = Workstation::shared()
        .run(&["curl", "-sS", "--max-time", "10", "http://alias/"])
        .expect_success();

    assert!(page.contains("nginx of"), "{page}");
}

#[test]
fn names_of_the_company_resolve_as_before() {
    let workstation = Workstation::shared();

    for form in [&[][..], &["+tcp"]] {
        let found = dig_short(workstation, &[form, &["intranet.corp.test"]].concat());
        assert_eq!(found, "192.0.2.10", "{form:?}");
    }
    let found = workstation
        .run(&["getent", "ahostsv4", "intranet.corp.test"])
        .expect_success();
    assert!(found.starts_with("192.0.2.10"), "{found}");
}

#[test]
fn foreign_answers_pass_byte_for_byte() {
    let workstation = Workstation::shared();
    // "InTranet.corp.TEST": type A; type TXT of class CHAOS; type 65280; with an EDNS cookie and
    // unknown flags; an opcode that is no query; half a message.
    let name = "08496e5472616e657404636f7270045445535400";
    let queries = [
        format!("123401000001000000000000{name}00010001"),
        format!("123501000001000000000000{name}00100003"),
        format!("12363f700001000000000000{name}ff000001"),
        format!(
            "123701200001000000000001{name}00010001000029ffff000080ff000c000a00080102030405060708"
        ),
        format!("123828000001000000000000{name}00060001"),
        "12390100000100".to_owned(),
    ];

    for (number, query) in queries.iter().enumerate() {
        let ask = ["udp", "-hex", "-timeout", "1s", "172.30.0.53:53", query];
        let without = workstation.echo_as(Account::Outsider, &ask);
        let with = workstation.echo(&ask);

        // The server answers queries; it may ignore the others.
        if number < 4 {
            let answer = without["text"].as_str().unwrap_or_default();
            assert_eq!(answer.get(..4), query.get(..4), "{without}");
        }
        assert_eq!(with["text"], without["text"], "{query}");
        assert_eq!(with["error"], without["error"], "{query}");
    }
}

#[test]
fn a_name_that_nobody_has_fails_as_before() {
    let workstation = Workstation::shared();
    for name in ["absent.corp.test", "absent", "absent.shop"] {
        let ask = |account| {
            let said = workstation.run_as(account, &["dig", "+time=3", "+tries=1", name]);
            let Some((_, rest)) = said.stdout.split_once("status: ") else {
                panic!("{name}: no answer: {said}");
            };
            rest.split(',').next().map(str::to_owned)
        };

        assert_eq!(ask(workstation.account()), ask(Account::Outsider), "{name}");
    }
}

#[test]
fn a_question_to_another_server_means_what_it_says() {
    let said = Workstation::shared().run(&[
        "dig",
        "+time=1",
        "+tries=1",
        "@172.30.0.210",
        "web.shop.svc.cluster.local",
    ]);

    assert_ne!(said.code(), 0, "{said}");
}

#[test]
fn a_socket_that_asked_the_name_server_hears_from_the_name_server() {
    // dig compares the reply's source with the server it asked.
    let said = Workstation::shared()
        .run(&["dig", "+time=3", "+tries=1", "@172.30.0.53", "web.shop"])
        .expect_success();

    assert!(said.contains("SERVER: 172.30.0.53#53"), "{said}");
}

#[test]
fn names_follow_the_connected_namespace_and_end_with_the_connection() {
    let workstation = Workstation::connected(Account::Root, "admin", "team-b", &[]);
    assert_eq!(
        dig_short(&workstation, &["echo"]),
        testbed().service_ip("team-b", "echo")
    );

    workstation.tp(&["quit"]).expect_success();

    let gone = workstation.run(&["getent", "ahostsv4", "echo.team-b.svc.cluster.local"]);
    assert_ne!(gone.code(), 0, "{gone}");
}

#[test]
fn mapped_namespaces_limit_what_resolves() {
    let workstation = Workstation::connected(
        Account::Root,
        "admin",
        "team-b",
        &["--mapped-namespaces", "team-b"],
    );

    assert_eq!(
        dig_short(&workstation, &["echo.team-b"]),
        testbed().service_ip("team-b", "echo")
    );
    let other = workstation.run(&["getent", "ahostsv4", "web.shop"]);
    assert_ne!(other.code(), 0, "{other}");
    let told = || workstation.status()["notices"].to_string();
    assert!(!told().contains("mapped-namespaces"), "{}", told());

    workstation.tp(&["quit"]).expect_success();
    let lists = ["--mapped-namespaces", "team-b,absent"];
    workstation.connect(&[&["--namespace", "shop"][..], &lists].concat());
    let told = told();
    assert!(told.contains("in the namespace absent"), "{told}");
    assert!(told.contains("the connected namespace shop"), "{told}");
}

#[test]
fn a_service_made_while_connected_resolves_until_it_is_deleted() {
    let workstation = Workstation::shared();
    let manifest = "{apiVersion: v1, kind: Service, metadata: {name: late, namespace: shop}, \
                    spec: {selector: {app: web}, ports: [{port: 80}]}}";
    let resolves = || workstation.run(&["getent", "ahostsv4", "late.shop"]).code() == 0;
    assert!(!resolves());

    testbed().kubectl_apply(manifest);
    eventually("the new service to resolve", Duration::from_secs(5), || {
        if resolves() {
            Ok(())
        } else {
            Err("it does not".into())
        }
    });
    testbed().kubectl(&["delete", "service", "late", "--namespace=shop"]);

    eventually("the name to be gone", Duration::from_secs(5), || {
        if resolves() {
            Err("it resolves".into())
        } else {
            Ok(())
        }
    });
}

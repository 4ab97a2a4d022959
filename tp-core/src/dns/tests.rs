//! Tests of the decision who answers a query, and of the table's answers.

use std::{
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use hickory_proto::{
    op::{Edns, OpCode},
    rr::RData,
};

use super::*;

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", "shop", []);
    let names = ["shop", "team-b", "dev", "default"].map(str::to_owned);
    zone.replace(
        names,
        vec![
            "10.96.0.0/16".parse().unwrap(),
            "10.244.0.0/16".parse().unwrap(),
        ],
    );
    zone.apply("shop", "web", service("10.96.1.2"));
    zone.apply("shop", "cells", ServiceEntry::default());
    zone.apply("team-b", "echo", service("10.96.1.3"));
    zone
}

fn service(address: &str) -> ServiceEntry {
    ServiceEntry {
        addresses: vec![address.parse().unwrap()],
    }
}

#[test]
fn visible_services_are_counted_and_one_with_an_address_is_known() {
    let mut zone = zone();

    assert_eq!(zone.service_count(), 3);
    let known = (
        "web.shop.svc.cluster.local".to_owned(),
        Ipv4Addr::new(10, 96, 1, 2),
    );
    assert_eq!(zone.a_service(), Some(known));

    // The check's query cannot be answered with an IPv6 address.
    zone.remove("shop", "web");
    zone.remove("team-b", "echo");
    zone.apply("shop", "six", service("fd00::1"));
    assert_eq!((zone.service_count(), zone.a_service()), (2, None));
    zone.set_frame(["default".to_owned()], Vec::new());
    assert_eq!(zone.service_count(), 0);
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(op::Query::query(Name::from_str(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn decide(query: &[u8], zone: &Zone, limit: Limit) -> Step {
    let query = Query::decode(query.to_vec(), limit);
    zone.decide(&query, ClusterState::Reachable)
}

fn decided(name: &str, kind: RecordType) -> Step {
    decide(&query(name, kind), &zone(), Limit::Datagram)
}

fn answer(name: &str, kind: RecordType) -> Message {
    match decided(name, kind) {
        Step::Send(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{name} {kind}: {other:?}"),
    }
}

fn asked(name: &str, kind: RecordType) -> Question {
    match decided(name, kind) {
        Step::AskCluster(question) => question,
        other => panic!("{name} {kind}: {other:?}"),
    }
}

#[test]
fn a_service_has_four_names_in_the_connected_namespace() {
    for name in [
        "web.",
        "web.shop.",
        "web.shop.svc.",
        "WEB.Shop.svc.cluster.local.",
    ] {
        let message = answer(name, RecordType::A);

        assert_eq!(message.metadata.id, 4711);
        assert_eq!(message.answers.len(), 1, "{name}");
        assert_eq!(message.answers[0].name, Name::from_str(name).unwrap());
        assert!(matches!(&message.answers[0].data, RData::A(a) if a.0.to_string() == "10.96.1.2"));
        assert!(message.answers[0].ttl <= TTL);
    }
}

#[test]
fn a_service_of_another_namespace_needs_its_name() {
    assert_eq!(answer("echo.team-b.", RecordType::A).answers.len(), 1);
    assert_eq!(decided("echo.", RecordType::A), Step::PassOn);
}

#[test]
fn a_service_of_another_namespace_may_be_lent_a_name_of_one_label() {
    let mut zone = zone();
    zone.lend(
        [("echo", "team-b"), ("web", "team-b"), ("gone", "team-b")]
            .map(|(name, namespace)| (name.to_owned(), namespace.to_owned()))
            .into(),
    );
    zone.apply("team-b", "web", service("10.96.1.9"));
    let step = |name| decide(&query(name, RecordType::A), &zone, Limit::Datagram);

    assert!(matches!(step("echo."), Step::Send(_)));
    // The connected namespace's own.
    let Step::Send(message) = step("web.") else {
        panic!("not answered");
    };
    assert_eq!(addresses(&message, 9), [Ipv4Addr::new(10, 96, 1, 2)]);
    assert_eq!(step("gone."), Step::PassOn);
}

#[test]
fn a_name_without_that_kind_of_record_exists_all_the_same() {
    let message = answer("web.", RecordType::AAAA);

    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.answers.is_empty());
    assert!(matches!(message.authorities[0].data, RData::SOA(_)));
}

#[test]
fn names_that_the_cluster_lacks_pass_on() {
    for name in [
        "example.com.",
        "intranet.corp.test.",
        "web.corp.test.",
        "nothing.shop.",
        "google.dev.",
    ] {
        assert_eq!(decided(name, RecordType::A), Step::PassOn, "{name}");
    }
}

#[test]
fn below_the_cluster_domain_nothing_is_an_answer() {
    for name in [
        "nothing.shop.svc.cluster.local.",
        "web.nowhere.svc.cluster.local.",
        "x.cluster.local.",
    ] {
        let code = answer(name, RecordType::A).metadata.response_code;
        assert_eq!(code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn headless_services_pods_and_srv_are_asked_in_the_cluster() {
    let cases = [
        ("cells.", RecordType::A, "cells.shop.svc.cluster.local."),
        (
            "cell-0.cells.",
            RecordType::A,
            "cell-0.cells.shop.svc.cluster.local.",
        ),
        (
            "cell-0.cells.shop.",
            RecordType::A,
            "cell-0.cells.shop.svc.cluster.local.",
        ),
        (
            "10-244-0-7.web.shop.svc.cluster.local.",
            RecordType::A,
            "10-244-0-7.web.shop.svc.cluster.local.",
        ),
        (
            "_http._tcp.web.shop.svc.",
            RecordType::SRV,
            "_http._tcp.web.shop.svc.cluster.local.",
        ),
    ];
    for (name, kind, full) in cases {
        assert_eq!(asked(name, kind).full_name, Name::from_str(full).unwrap());
    }
}

#[test]
fn an_address_of_a_service_has_a_pointer() {
    let message = answer("2.1.96.10.in-addr.arpa.", RecordType::PTR);

    assert!(
        matches!(&message.answers[0].data, RData::PTR(name) if name.0 == Name::from_str("web.shop.svc.cluster.local.").unwrap())
    );
}

#[test]
fn other_pointers_are_asked_in_the_cluster_or_pass_on() {
    asked("7.0.244.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(
        decided("8.8.8.8.in-addr.arpa.", RecordType::PTR),
        Step::PassOn
    );
}

#[test]
fn the_name_of_a_network_is_not_that_of_an_address() {
    assert_eq!(
        decided("96.10.in-addr.arpa.", RecordType::PTR),
        Step::PassOn
    );
}

#[test]
fn what_is_no_query_passes_on() {
    let zone = zone();
    let mut response = query("web.", RecordType::A);
    response[2] |= 0x80;

    for bytes in [b"garbage".to_vec(), Vec::new(), response] {
        assert_eq!(decide(&bytes, &zone, Limit::Datagram), Step::PassOn);
    }
}

#[test]
fn a_mapping_hides_the_other_namespaces() {
    let mut zone = Zone::new("cluster.local", "shop", ["shop".to_owned()]);
    zone.replace(["shop".to_owned(), "team-b".to_owned()], Vec::new());
    zone.apply("team-b", "echo", service("10.96.1.3"));

    let bytes = query("echo.team-b.svc.", RecordType::A);
    assert_eq!(decide(&bytes, &zone, Limit::Datagram), Step::PassOn);
}

#[test]
fn edns_is_answered_with_edns_and_sets_the_limit() {
    let mut zone = zone();
    let addresses = (0..100).map(|i| IpAddr::from([10, 96, 2, i])).collect();
    zone.apply("shop", "many", ServiceEntry { addresses });
    let plain = query("many.", RecordType::A);
    let mut message = Message::from_vec(&plain).unwrap();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let extended = message.to_vec().unwrap();
    let sent = |bytes: &[u8], limit| match decide(bytes, &zone, limit) {
        Step::Send(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    };

    assert!(sent(&plain, Limit::Datagram).metadata.truncation);
    assert!(sent(&extended, Limit::Datagram).metadata.truncation);
    assert!(sent(&extended, Limit::Datagram).edns.is_some());
    assert_eq!(sent(&plain, Limit::Stream).answers.len(), 100);
}

#[test]
fn a_removed_service_is_nobodys() {
    let mut zone = zone();
    zone.remove("shop", "web");

    assert_eq!(
        decide(&query("web.", RecordType::A), &zone, Limit::Datagram),
        Step::PassOn
    );
    assert_eq!(zone.service_at("10.96.1.2".parse().unwrap()), None);
}

#[test]
fn names_on_the_way_to_others_exist_without_records() {
    for name in [
        "cluster.local.",
        "svc.cluster.local.",
        "shop.svc.cluster.local.",
    ] {
        let message = answer(name, RecordType::A);

        assert_eq!(
            message.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert!(matches!(message.authorities[0].data, RData::SOA(_)));
    }
    assert_eq!(decided("shop.svc.", RecordType::A), Step::PassOn);
}

#[test]
fn names_of_pod_addresses_are_asked_in_the_cluster() {
    let full = Name::from_str("10-244-0-7.shop.pod.cluster.local.").unwrap();
    for name in ["10-244-0-7.shop.pod.", "10-244-0-7.shop.pod.cluster.local."] {
        assert_eq!(asked(name, RecordType::A).full_name, full);
    }
    let hidden = answer("10-244-0-7.hidden.pod.cluster.local.", RecordType::A);
    assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn a_service_named_like_a_top_level_domain_claims_the_names_it_has_and_no_other() {
    let mut zone = zone();
    zone.apply("shop", "app", service("10.96.1.9"));
    zone.apply("dev", "google", service("10.96.1.10"));
    let decided = |name, kind| decide(&query(name, kind), &zone, Limit::Datagram);

    for name in ["app.", "app.shop.", "google.dev."] {
        let own = decided(name, RecordType::A);
        assert!(matches!(own, Step::Send(_)), "{name}: {own:?}");
    }
    for name in [
        "vercel.app.",
        "x.vercel.app.",
        "www.google.dev.",
        "a.b.www.google.dev.",
        "_dmarc.vercel.app.",
        "x.app.shop.",
    ] {
        for kind in [
            RecordType::A,
            RecordType::AAAA,
            RecordType::MX,
            RecordType::HTTPS,
            RecordType::SRV,
        ] {
            assert_eq!(decided(name, kind), Step::PassOn, "{kind} {name}");
        }
    }
    let port = decided("_http._tcp.app.", RecordType::SRV);
    assert!(matches!(port, Step::AskCluster(_)), "{port:?}");
}

#[test]
fn a_namespace_of_others_does_not_take_the_place_of_a_public_registry() {
    let decided = |mut zone: Zone, name| {
        zone.replace(["com", "io", "shop"].map(str::to_owned), Vec::new());
        zone.apply("com", "example", service("10.96.1.9"));
        zone.apply("io", "example", service("10.96.1.10"));
        decide(&query(name, RecordType::A), &zone, Limit::Datagram)
    };
    let everything = || Zone::new("cluster.local", "shop", []);

    for name in ["example.com.", "example.io."] {
        assert_eq!(decided(everything(), name), Step::PassOn, "{name}");
    }
    for (zone, name) in [
        (everything(), "example.com.svc."),
        (everything(), "example.com.svc.cluster.local."),
        (Zone::new("cluster.local", "com", []), "example.com."),
        (
            Zone::new("cluster.local", "shop", ["com".to_owned()]),
            "example.com.",
        ),
    ] {
        let own = decided(zone, name);
        assert!(matches!(own, Step::Send(_)), "{name}: {own:?}");
    }
}

#[test]
fn names_that_cannot_be_a_pods_are_not_asked_for() {
    for name in ["www.shop.pod.", "10-244-0.shop.pod."] {
        assert_eq!(decided(name, RecordType::A), Step::PassOn, "{name}");
    }
    asked("fd00--7.shop.pod.", RecordType::AAAA);
}

#[test]
fn addresses_that_do_not_lead_into_the_tunnel_are_not_answered() {
    let mut zone = zone();
    let addresses = ["10.96.1.9", "fd00::9"]
        .map(|it| it.parse().unwrap())
        .into();
    zone.apply("shop", "both", ServiceEntry { addresses });
    let answers = |kind| match decide(&query("both.", kind), &zone, Limit::Datagram) {
        Step::Send(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    };

    assert_eq!(answers(RecordType::A).answers.len(), 1);
    assert_eq!(answers(RecordType::ANY).answers.len(), 1);
    let none = answers(RecordType::AAAA);
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert!(none.answers.is_empty());
    assert!(matches!(none.authorities[0].data, RData::SOA(_)));
}

#[test]
fn an_address_that_changed_hands_keeps_its_new_name() {
    let mut zone = zone();
    zone.apply("shop", "next", service("10.96.1.2"));
    zone.remove("shop", "web");

    let owner = zone.service_at("10.96.1.2".parse().unwrap());

    assert_eq!(owner, Some(("shop", "next")));
}

#[test]
fn a_cluster_may_have_another_domain() {
    let mut zone = zone();
    zone.set_domain("Cluster.Example.");
    let decided = |name| decide(&query(name, RecordType::A), &zone, Limit::Datagram);

    assert!(matches!(
        decided("web.shop.svc.cluster.example."),
        Step::Send(_)
    ));
    assert_eq!(decided("web.shop.svc.cluster.local."), Step::PassOn);
}
#[test]
fn while_the_cluster_is_unreachable_what_the_table_decides_fails() {
    let zone = zone();
    let step = |name| {
        let query = Query::decode(query(name, RecordType::A), Limit::Datagram);
        zone.decide(&query, ClusterState::Unreachable)
    };

    for name in ["web.", "nothing.shop.svc.cluster.local."] {
        let Step::Fail(bytes) = step(name) else {
            panic!("{name}");
        };
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.id, 4711);
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
        assert!(message.answers.is_empty() && message.authorities.is_empty());
    }
    assert!(matches!(step("cells."), Step::AskCluster(_)));
    assert_eq!(step("example.com."), Step::PassOn);
}

#[test]
fn a_query_that_cannot_be_sent_fails_and_any_other_message_has_no_answer() {
    let failure = |message: &[u8]| {
        let query = Query::decode(message.to_vec(), Limit::Datagram);
        assert_eq!(query.message(), message);
        query.failure()
    };

    let sent = failure(&query("example.com.", RecordType::MX)).unwrap();
    let code = Message::from_vec(&sent).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
    assert_eq!(failure(b"garbage"), None);
}

mod replies;

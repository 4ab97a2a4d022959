use std::str::FromStr;

use hickory_proto::{op::Edns, rr::RData};

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

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn decided(name: &str, kind: RecordType) -> Decision {
    decide(&query(name, kind), &zone(), Limit::Datagram)
}

fn answer(name: &str, kind: RecordType) -> Message {
    match decided(name, kind) {
        Decision::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{name} {kind}: {other:?}"),
    }
}

fn asked(name: &str, kind: RecordType) -> Question {
    match decided(name, kind) {
        Decision::AskCluster(question) => question,
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
    assert_eq!(decided("echo.", RecordType::A), Decision::PassOn);
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
        assert_eq!(decided(name, RecordType::A), Decision::PassOn, "{name}");
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
fn an_answer_of_the_cluster_carries_the_asked_name() {
    let question = asked("cells.", RecordType::A);
    let mut reply = Message::response(1, OpCode::Query);
    let address = RData::A("10.244.0.7".parse().unwrap());
    let record = hickory_proto::rr::Record::from_rdata(question.full_name.clone(), 30, address);
    reply.add_answer(record);

    let bytes = query("cells.", RecordType::A);
    let sent = rewritten(&bytes, &question, &reply.to_vec().unwrap(), Limit::Datagram).unwrap();
    let sent = Message::from_vec(&sent).unwrap();

    assert_eq!(sent.metadata.id, 4711);
    assert_eq!(sent.answers[0].name, Name::from_str("cells.").unwrap());
    assert_eq!(sent.answers[0].ttl, TTL);
}

#[test]
fn the_cluster_lacking_a_name_ends_only_what_is_ours() {
    let zone = zone();
    let ours = asked("cell-9.cells.shop.svc.cluster.local.", RecordType::A);
    let bytes = query("cell-9.cells.shop.svc.cluster.local.", RecordType::A);
    assert!(not_in_cluster(&bytes, &ours, &zone, Limit::Datagram).is_some());

    let short = asked("cell-9.cells.", RecordType::A);
    let bytes = query("cell-9.cells.", RecordType::A);
    assert_eq!(not_in_cluster(&bytes, &short, &zone, Limit::Datagram), None);
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
        Decision::PassOn
    );
}

#[test]
fn what_is_no_query_passes_on() {
    let zone = zone();
    let mut response = query("web.", RecordType::A);
    response[2] |= 0x80;

    for bytes in [b"garbage".to_vec(), Vec::new(), response] {
        assert_eq!(decide(&bytes, &zone, Limit::Datagram), Decision::PassOn);
    }
}

#[test]
fn a_mapping_hides_the_other_namespaces() {
    let mut zone = Zone::new("cluster.local", "shop", ["shop".to_owned()]);
    zone.replace(["shop".to_owned(), "team-b".to_owned()], Vec::new());
    zone.apply("team-b", "echo", service("10.96.1.3"));

    let bytes = query("echo.team-b.svc.", RecordType::A);
    assert_eq!(decide(&bytes, &zone, Limit::Datagram), Decision::PassOn);
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
        Decision::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
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
        Decision::PassOn
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
    assert_eq!(decided("shop.svc.", RecordType::A), Decision::PassOn);
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
fn a_service_named_like_a_top_level_domain_does_not_claim_all_of_it() {
    let mut zone = zone();
    zone.apply("shop", "com", service("10.96.1.9"));
    let passes =
        |name| decide(&query(name, RecordType::A), &zone, Limit::Datagram) == Decision::PassOn;

    assert!(!passes("com."));
    assert!(passes("a.b.example.com."));
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
fn what_the_cluster_lacks_is_not_remembered_for_long() {
    let question = asked("cell-9.cells.shop.svc.cluster.local.", RecordType::A);
    let mut reply = Message::response(1, OpCode::Query);
    reply.metadata.response_code = ResponseCode::NXDomain;
    let name = || Name::from_str("cluster.local.").unwrap();
    let soa = hickory_proto::rr::rdata::SOA::new(name(), name(), 1, 2, 3, 4, 300);
    reply.add_authority(hickory_proto::rr::Record::from_rdata(
        name(),
        300,
        RData::SOA(soa),
    ));

    let bytes = query("cell-9.cells.shop.svc.cluster.local.", RecordType::A);
    let sent = rewritten(&bytes, &question, &reply.to_vec().unwrap(), Limit::Datagram).unwrap();
    let sent = Message::from_vec(&sent).unwrap();

    assert_eq!(sent.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(sent.authorities[0].ttl, TTL);
    assert!(matches!(&sent.authorities[0].data, RData::SOA(soa) if soa.minimum == TTL));
}

#[test]
fn a_cluster_may_have_another_domain() {
    let mut zone = zone();
    zone.set_domain("Cluster.Example.");
    let decided = |name| decide(&query(name, RecordType::A), &zone, Limit::Datagram);

    assert!(matches!(
        decided("web.shop.svc.cluster.example."),
        Decision::Answer(_)
    ));
    assert_eq!(decided("web.shop.svc.cluster.local."), Decision::PassOn);
}

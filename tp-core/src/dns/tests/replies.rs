//! Tests of the step after the cluster's reply.

use hickory_proto::rr::{Record, rdata};

use super::*;

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn reply(code: ResponseCode, records: &[(&str, RData)]) -> Message {
    let mut reply = Message::response(1, OpCode::Query);
    reply.metadata.response_code = code;
    for (owner, data) in records {
        reply.add_answer(Record::from_rdata(name(owner), 30, data.clone()));
    }
    reply
}

fn address(text: &str) -> RData {
    match text.parse().unwrap() {
        IpAddr::V4(v4) => RData::A(rdata::A(v4)),
        IpAddr::V6(v6) => RData::AAAA(rdata::AAAA(v6)),
    }
}

fn alias(target: &str) -> RData {
    RData::CNAME(rdata::CNAME(name(target)))
}

/// The last step of a query for which the cluster sends these replies in turn.
fn concluded(asked_name: &str, kind: RecordType, replies: &[Message]) -> Step {
    let query = Query::decode(query(asked_name, kind), Limit::Datagram);
    let mut question = asked(asked_name, kind);
    for reply in replies {
        let reply = reply.to_vec().unwrap();
        match query.answered(&question, &reply, &zone()) {
            Step::AskCluster(next) => question = next,
            step => return step,
        }
    }
    Step::AskCluster(question)
}

fn answer_to(asked_name: &str, kind: RecordType, replies: &[Message]) -> Message {
    match concluded(asked_name, kind, replies) {
        Step::Send(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{asked_name} {kind}: {other:?}"),
    }
}

const FULL: &str = "cells.shop.svc.cluster.local.";
const HOST: &str = "cell-0.cells.shop.svc.cluster.local.";

#[test]
fn an_answer_of_the_cluster_carries_the_asked_name() {
    let found = reply(ResponseCode::NoError, &[(FULL, address("10.244.0.7"))]);

    let sent = answer_to("cells.", RecordType::A, &[found]);

    assert_eq!(sent.metadata.id, 4711);
    assert_eq!(sent.answers[0].name, name("cells."));
    assert_eq!(sent.answers[0].ttl, TTL);
    let bytes = sent.to_vec().unwrap();
    let address: Ipv4Addr = "10.244.0.7".parse().unwrap();
    assert_eq!(addresses(&bytes, 1), [address]);
    assert_eq!(addresses(&bytes, 0), [Ipv4Addr::LOCALHOST; 0]);
}

#[test]
fn names_that_the_cluster_does_not_have_pass_on_unless_they_are_below_its_domain() {
    let codes = [
        ResponseCode::NXDomain,
        ResponseCode::ServFail,
        ResponseCode::Refused,
        ResponseCode::NotImp,
    ];
    let kinds = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::MX,
        RecordType::HTTPS,
        RecordType::TXT,
    ];
    for (code, kind) in codes
        .into_iter()
        .flat_map(|it| kinds.map(|kind| (it, kind)))
    {
        for foreign in [
            "example.cells.",
            "cells.",
            "example.cells.shop.",
            "example.cells.shop.svc.",
        ] {
            let concluded = concluded(foreign, kind, &[reply(code, &[])]);
            assert_eq!(concluded, Step::PassOn, "{code} {kind} {foreign}");
        }
        let ours = answer_to(HOST, kind, &[reply(code, &[])]);
        assert_eq!(ours.metadata.response_code, code, "{kind}");
    }
}

#[test]
fn a_user_who_may_not_ask_for_a_name_is_told_so_only_below_the_clusters_domain() {
    let conclude_empty = |asked_name| {
        let query = query(asked_name, RecordType::A);
        let query = Query::decode(query, Limit::Datagram);
        let question = asked(asked_name, RecordType::A);
        query.answered(&question, &[], &zone())
    };

    assert_eq!(conclude_empty("cell-9.cells."), Step::PassOn);
    let Step::Send(bytes) = conclude_empty("cell-9.cells.shop.svc.cluster.local.") else {
        panic!("nobody else knows this name");
    };
    let code = Message::from_vec(&bytes).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::NXDomain);
}

#[test]
fn a_host_without_a_record_of_the_asked_type_has_an_empty_answer_and_does_not_pass_on() {
    let nothing = || reply(ResponseCode::NoError, &[]);
    let host = || reply(ResponseCode::NoError, &[(HOST, address("10.244.0.7"))]);
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::HTTPS] {
        let sent = answer_to("cell-0.cells.", kind, &[nothing(), host()]);

        assert_eq!(sent.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(sent.answers.is_empty(), "{kind}");
        assert!(matches!(sent.authorities[0].data, RData::SOA(_)), "{kind}");
    }
}

#[test]
fn an_empty_reply_to_a_name_that_has_no_address_either_passes_on() {
    // A cluster's DNS may be configured to answer every AAAA query without records.
    let nothing = || reply(ResponseCode::NoError, &[]);
    let missing = || reply(ResponseCode::NXDomain, &[]);

    for second in [nothing(), missing()] {
        let concluded = concluded("example.cells.", RecordType::AAAA, &[nothing(), second]);
        assert_eq!(concluded, Step::PassOn);
    }
    let concluded = concluded("example.cells.", RecordType::A, &[nothing()]);
    assert_eq!(concluded, Step::PassOn);
}

#[test]
fn a_service_without_a_record_of_the_asked_type_has_an_empty_answer() {
    let nothing = reply(ResponseCode::NoError, &[]);

    let sent = answer_to("cells.", RecordType::AAAA, &[nothing]);

    assert!(sent.answers.is_empty());
}

#[test]
fn an_alias_whose_target_fails_is_still_the_clusters() {
    let to_nowhere = reply(ResponseCode::ServFail, &[(FULL, alias("gone.corp.test."))]);

    let sent = answer_to("cells.", RecordType::A, &[to_nowhere]);

    assert_eq!(sent.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(sent.answers[0].name, name("cells."));
}

#[test]
fn ipv6_addresses_are_left_out_of_every_answer() {
    let both = || {
        let records = [
            (FULL, address("2001:db8::1")),
            (FULL, address("10.244.0.7")),
        ];
        let mut both = reply(ResponseCode::NoError, &records);
        both.add_additional(Record::from_rdata(name(HOST), 30, address("2001:db8::2")));
        both
    };
    let behind_alias = reply(
        ResponseCode::NoError,
        &[
            (FULL, alias("www.corp.test.")),
            ("www.corp.test.", address("2001:db8::3")),
        ],
    );

    let sent = answer_to("cells.", RecordType::ANY, &[both()]);
    assert_eq!(sent.answers.len(), 1);
    assert!(sent.additionals.is_empty());
    let sent = answer_to("cells.", RecordType::AAAA, &[behind_alias]);
    assert_eq!(sent.answers.len(), 1);
    assert!(matches!(sent.authorities[0].data, RData::SOA(_)));
}

#[test]
fn an_answer_that_begins_with_another_name_is_given_for_the_asked_one() {
    let elsewhere = "cells.other.svc.cluster.local.";
    let rewritten = reply(ResponseCode::NoError, &[(elsewhere, address("10.244.0.7"))]);
    let sent = answer_to("cells.", RecordType::A, &[rewritten]);
    assert_eq!(sent.answers[0].name, name("cells."));

    let chain = [
        (elsewhere, alias("web.corp.test.")),
        ("web.corp.test.", address("192.0.2.10")),
    ];
    let sent = answer_to(
        "cells.",
        RecordType::A,
        &[reply(ResponseCode::NoError, &chain)],
    );
    let owners: Vec<&Name> = sent.answers.iter().map(|it| &it.name).collect();
    assert_eq!(owners, [&name("cells."), &name("web.corp.test.")]);
}

#[test]
fn what_the_cluster_lacks_is_not_remembered_for_long() {
    let host = "cell-9.cells.shop.svc.cluster.local.";
    let mut missing = reply(ResponseCode::NXDomain, &[]);
    let domain = || name("cluster.local.");
    let soa = rdata::SOA::new(domain(), domain(), 1, 2, 3, 4, 300);
    missing.add_authority(Record::from_rdata(domain(), 300, RData::SOA(soa)));

    let sent = answer_to(host, RecordType::A, &[missing]);

    assert_eq!(sent.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(sent.authorities[0].ttl, TTL);
    assert!(matches!(&sent.authorities[0].data, RData::SOA(soa) if soa.minimum == TTL));
}

#[test]
fn without_a_reply_only_names_below_the_clusters_domain_fail() {
    let unanswered = |asked_name| {
        let query = query(asked_name, RecordType::A);
        let query = Query::decode(query, Limit::Datagram);
        query.unanswered(&asked(asked_name, RecordType::A))
    };

    let Step::Fail(bytes) = unanswered(HOST) else {
        panic!("nobody else knows this name");
    };
    let code = Message::from_vec(&bytes).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
    assert_eq!(unanswered("cells."), Step::PassOn);
}

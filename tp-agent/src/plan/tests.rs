use std::collections::BTreeSet;

use tp_agent_api::LeaseState::{self, Container, Redirect, Refuse};
use tp_core::intercept::holders::WorkloadKey;
use tp_proto::agent::{Lease, PortState};

use super::*;

const NOW: BootTime = 100_000_000_000;
const SECOND: BootTime = 1_000_000_000;

fn workload(name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: "shop".into(),
        kind: "Deployment".into(),
        name: name.into(),
    }
}

fn intercept(created: i64) -> InterceptFacts {
    InterceptFacts {
        workload: workload("web"),
        created,
        ports: BTreeSet::from([80, 81]),
        replica: None,
        has_local_probes: false,
        falls_back: false,
        takes_open: false,
    }
}

fn pod(name: &str) -> PodFacts {
    PodFacts {
        name: name.into(),
        created: 7,
        workloads: vec![workload("web")],
        ids: PodIds {
            uid: name.into(),
            containers: vec!["c".into()],
            addresses: Vec::new(),
        },
        addresses: Vec::new(),
        nodes: Vec::new(),
        probed: BTreeSet::from([81]),
        http_probed: BTreeSet::from([80]),
        obstacle: None,
    }
}

/// Intercepts `i` and `j`, `i` is older; pods `a` and `b`.
fn facts() -> Facts {
    Facts {
        intercepts: BTreeMap::from([("i".into(), intercept(1)), ("j".into(), intercept(2))]),
        pods: BTreeMap::from([("a".into(), pod("a")), ("b".into(), pod("b"))]),
        reviews: BTreeMap::from([
            ("i".into(), UserReview::Allowed),
            ("j".into(), UserReview::Allowed),
        ]),
    }
}

fn named(leases: &[(&str, &[(u16, bool)])]) -> Vec<Lease> {
    let leases = leases.iter().map(|(intercept, ports)| Lease {
        intercept: (*intercept).into(),
        ports: ports
            .iter()
            .map(|(port, is_listening)| PortState {
                port: (*port).into(),
                is_listening: *is_listening,
            })
            .collect(),
        ..Lease::default()
    });

    leases.collect()
}

fn heard(leases: &[(&str, &[(u16, bool)])], at: BootTime) -> News {
    News::default().next(named(leases), at)
}

fn planned(news: AllNews, facts: &Facts) -> Plan {
    plan(NOW, &news, facts, &Rules::default())
}

fn one(news: News) -> AllNews {
    BTreeMap::from([("m".into(), news)])
}

/// Port, Intercept, manager and state.
fn ports<'a>(plan: &'a Plan, pod: &str) -> Vec<(u16, &'a str, &'a str, LeaseState)> {
    let ports = plan.pods.get(pod).into_iter().flat_map(|pod| &pod.ports);

    ports
        .map(|(number, port)| (*number, &*port.intercept, &*port.manager, port.state))
        .collect()
}

#[test]
fn leased_ports_of_all_pods_of_the_workload_are_redirected() {
    let mut facts = facts();
    facts.pods.get_mut("b").unwrap().workloads = vec![workload("other")];
    let news = heard(
        &[("i", &[(80, true), (81, false), (443, true)])],
        NOW - SECOND,
    );

    let plan = planned(one(news), &facts);

    assert_eq!(
        ports(&plan, "a"),
        [(80, "i", "m", Redirect), (81, "i", "m", Refuse)]
    );
    assert_eq!(plan.pods["a"].ports[&80].renewed, NOW - SECOND);
    let planned = &plan.pods["a"].ports;
    assert!(!planned[&80].probed && planned[&80].http_probed);
    assert!(planned[&81].probed && !planned[&81].http_probed);
    assert!(!plan.pods.contains_key("b") && plan.refusals.is_empty());
}

#[test]
fn an_intercept_decides_over_replica_probes_and_what_serves_while_it_is_down() {
    let mut facts = facts();
    let intercept = facts.intercepts.get_mut("i").unwrap();
    intercept.replica = Some("b".into());
    intercept.has_local_probes = true;
    intercept.falls_back = true;
    intercept.takes_open = true;

    let plan = planned(
        one(heard(&[("i", &[(80, true), (81, false)])], NOW)),
        &facts,
    );

    assert!(!plan.pods.contains_key("a"));
    assert_eq!(ports(&plan, "b")[1], (81, "i", "m", Container));
    let ports = &plan.pods["b"].ports;
    assert!(!ports[&81].probed && !ports[&80].http_probed);
    assert!(ports[&80].takes_open);
    assert_eq!(ports[&80].met, 7, "the pod is newer");
}

#[test]
fn old_news_unknown_intercepts_and_what_is_under_review_have_nothing() {
    let mut facts = facts();
    facts.reviews.remove("j");
    let leases: &[(&str, &[(u16, bool)])] = &[("i", &[(80, true)])];

    assert!(
        planned(one(heard(leases, NOW - 5 * SECOND - 1)), &facts)
            .pods
            .is_empty()
    );
    assert_eq!(
        planned(one(heard(leases, NOW - 5 * SECOND)), &facts)
            .pods
            .len(),
        2
    );
    for uid in ["j", "k"] {
        let plan = planned(one(heard(&[(uid, &[(80, true)])], NOW)), &facts);
        assert_eq!(plan, Plan::default(), "{uid}");
    }
}

#[test]
fn of_two_managers_with_one_port_the_older_intercept_has_it() {
    let news = BTreeMap::from([
        ("m".into(), heard(&[("j", &[(80, true), (81, true)])], NOW)),
        ("n".into(), heard(&[("i", &[(80, false)])], NOW)),
    ]);

    let plan = planned(news, &facts());

    assert_eq!(
        ports(&plan, "a"),
        [(80, "i", "n", Refuse), (81, "j", "m", Redirect)]
    );
}

#[test]
fn a_session_is_where_it_went_last() {
    let leases: &[(&str, &[(u16, bool)])] = &[("i", &[(80, true)])];
    let first = heard(leases, NOW - 3 * SECOND).next(named(leases), NOW);
    let news = BTreeMap::from([
        ("m".into(), heard(leases, NOW - SECOND)),
        ("n".into(), first),
    ]);

    assert_eq!(
        ports(&planned(news, &facts()), "a"),
        [(80, "i", "m", Redirect)]
    );
}

#[test]
fn a_quiet_session_keeps_its_redirects_and_leaves_all_to_the_container() {
    let ports: &[(&str, &[(u16, bool)])] = &[("i", &[(80, true)])];
    let mut quiet = named(ports);
    quiet[0].is_quiet = true;
    let before = heard(ports, NOW - 3 * SECOND);
    let news = before.next(quiet.clone(), NOW - SECOND);
    let state = |news: &News| planned(one(news.clone()), &facts()).pods["a"].ports[&80].state;
    assert_eq!(state(&before), Redirect);
    assert_eq!(state(&news), Container);
    let mut alone = before;
    alone.quieten();
    assert_eq!(state(&alone), Container);
    assert_eq!(state(&news.next(named(ports), NOW)), Redirect);
    let gone = news.next(Vec::new(), NOW);
    assert!(planned(one(gone), &facts()).pods.is_empty());
    let unheard = News::default().next(quiet, NOW);
    assert_eq!(state(&unheard), Container);

    // It is where it is heard, whoever had it last.
    let of_two = BTreeMap::from([
        ("m".into(), heard(ports, NOW - SECOND)),
        ("n".into(), unheard),
    ]);
    assert_eq!(
        managers_of(&planned(of_two, &facts())),
        BTreeSet::from(["m".to_owned()])
    );
}

fn managers_of(plan: &Plan) -> BTreeSet<String> {
    let ports = plan.pods.values().flat_map(|pod| pod.ports.values());

    ports.map(|port| port.manager.clone()).collect()
}

#[test]
fn a_round_is_taken_as_a_whole_and_is_bounded() {
    let message = |numbers: std::ops::Range<usize>, more| ManagerNews {
        leases: numbers
            .map(|number| Lease {
                intercept: number.to_string(),
                name: "web".into(),
                ..Lease::default()
            })
            .collect(),
        more,
        environ: None,
    };
    let mut round = Round::default();

    assert_eq!(round.take(message(0..900, true)), None);
    assert_eq!(round.take(message(900..1999, true)), None);
    let leases = round.take(message(1999..2000, false)).unwrap();
    assert_eq!(leases.len(), 2000);
    assert_eq!(leases[1999].intercept, "1999");
    assert!(leases[0].name.is_empty());

    assert_eq!(round.take(message(0..MAX_LEASES, true)), None);
    let leases = round.take(message(0..5, false)).unwrap();
    assert_eq!(leases.len(), MAX_LEASES);
    assert_eq!(round.take(message(0..0, false)), Some(Vec::new()));
}

#[test]
fn each_reason_against_a_redirect_is_told_for_each_pod() {
    let lease = || one(heard(&[("i", &[(80, true)])], NOW));
    let reasons = |facts: &Facts, rules: &Rules| {
        let plan = plan(NOW, &lease(), facts, rules);
        let reasons = plan.refusals.iter().map(|it| it.reason.clone());
        reasons.collect::<Vec<_>>()
    };
    let in_namespace = |namespace: &str| {
        let mut facts = facts();
        let workload = &mut facts.intercepts.get_mut("i").unwrap().workload;
        workload.namespace = namespace.into();
        let workload = workload.clone();
        facts
            .pods
            .values_mut()
            .for_each(|pod| pod.workloads = vec![workload.clone()]);
        facts
    };
    let rules = Rules {
        manager_namespace: "tp-here".into(),
        ..Rules::default()
    };

    for namespace in ["tp-here", "tp-system", "tp-agents", "kube-system"] {
        let reasons = reasons(&in_namespace(namespace), &rules);
        assert_eq!(reasons.len(), 2, "one for each pod");
        assert!(reasons[0].contains(namespace), "{reasons:?}");
    }
    let allowing = Rules {
        allow_system: true,
        ..rules.clone()
    };
    assert!(reasons(&in_namespace("kube-system"), &allowing).is_empty());
    let only = Rules {
        only: BTreeSet::from(["bank".into()]),
        ..rules.clone()
    };
    assert!(reasons(&facts(), &only)[0].contains("shop"));
    assert!(reasons(&in_namespace("bank"), &only).is_empty());

    let mut denied = facts();
    denied
        .reviews
        .insert("i".into(), UserReview::Denied("may not".into()));
    assert_eq!(reasons(&denied, &rules), ["may not", "may not"]);
    let mut hindered = facts();
    hindered.pods.get_mut("b").unwrap().obstacle = Some("hostNetwork".into());
    assert_eq!(reasons(&hindered, &rules), ["hostNetwork"]);
}

#[test]
fn there_are_only_so_many_ports() {
    let mut facts = facts();
    let many: Vec<(u16, bool)> = (1..=33).map(|port| (port, true)).collect();
    let more: Vec<(u16, bool)> = (41..=73).map(|port| (port, true)).collect();
    for (uid, ports) in [("i", &many), ("j", &more)] {
        let ports = ports.iter().map(|(port, _)| *port).collect();
        facts.intercepts.get_mut(uid).unwrap().ports = ports;
    }

    let plan = planned(one(heard(&[("i", &many), ("j", &more)], NOW)), &facts);

    assert_eq!(plan.pods["a"].ports.len(), 33);
    assert_eq!(plan.refusals.len(), 2);
    assert!(plan.refusals[0].reason.contains("64"));
}

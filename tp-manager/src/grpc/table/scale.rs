//! The cost of a change in a large cluster for many sessions.

use std::{net::Ipv4Addr, time::Instant};

use tp_proto::{
    table::{SnapshotAssembler, apply},
    tunnel::table_event::Event,
};

use super::*;
use crate::model::{Model, ObjectName, Pod, Service, Update};

const SESSIONS: usize = 300;
const NAMESPACES: u32 = 50;
const SERVICES: u32 = 5000;
const PODS: u32 = 10_000;
/// tonic's default limit for a decoded message.
const LARGEST_MESSAGE: usize = 4 << 20;

fn service(number: u32) -> (ObjectName, Service) {
    let namespace = format!("team-{}", number % NAMESPACES);
    let name = ObjectName::new(namespace, format!("service-{number}"));
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number);
    let service = Service {
        cluster_ips: vec![ip.into()],
        ..Service::default()
    };

    (name, service)
}

fn cluster(services: u32) -> SharedModel {
    let shared = SharedModel::new();
    let namespaces = (0..NAMESPACES).map(|it| (format!("team-{it}"), ()));
    shared.update(|model| {
        model.update_namespaces(Update::Replaced(namespaces.collect()));
        model.update_services(Update::Replaced((0..services).map(service).collect()));
    });
    shared
}

fn all(model: &Model) -> BTreeSet<String> {
    model.namespaces().map(String::from).collect()
}

/// All changes, until nothing is left to send.
fn all_changes(known: &mut TableCursor, model: &Model, user: &BTreeSet<String>) -> Vec<Change> {
    let mut changes = known.follow(model, user);
    while known.has_more() {
        changes.extend(known.follow(model, user));
    }
    changes
}

#[test]
fn a_change_of_one_service_is_looked_at_once_for_each_session() {
    let shared = cluster(SERVICES);
    let user = all(&shared.read());
    let mut sessions: Vec<TableCursor> = (0..SESSIONS).map(|_| TableCursor::new(PART)).collect();
    let begin = Instant::now();
    for known in &mut sessions {
        all_changes(known, &shared.read(), &user);
    }
    let whole = begin.elapsed();
    let (name, _) = service(7);
    shared.update(|model| model.update_services(Update::Removed(name.clone())));

    let before = shared.read().looks();
    let begin = Instant::now();
    for known in &mut sessions {
        let changes = all_changes(known, &shared.read(), &user);
        assert_eq!(changes, [Change::Removed(name.clone())]);
    }
    println!(
        "{whole:?} for all services, {:?} for a change",
        begin.elapsed()
    );

    assert_eq!(shared.read().looks() - before, SESSIONS);
}

#[test]
fn a_pod_beside_others_derives_no_network() {
    let shared = cluster(1);
    let pod = |number: u32| {
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 0).to_bits() + number);
        let addresses = vec![ip.into()];
        let name = ObjectName::new("team-0", format!("pod-{number}"));
        let pod = Pod {
            addresses,
            ..Pod::default()
        };
        Update::Applied(name, pod)
    };
    let every_other = (0..PODS).filter(|number| number % 2 == 0);
    shared.update(|model| every_other.for_each(|it| model.update_pods(pod(it))));
    let derived = || shared.read().derivations();

    let before = derived();
    for number in (0..PODS).filter(|number| number % 2 == 1) {
        shared.update(|model| model.update_pods(pod(number)));
    }
    assert_eq!(derived(), before, "every block is covered already");
    shared.update(|model| (PODS..2 * PODS).for_each(|it| model.update_pods(pod(it))));
    assert_eq!(derived(), before + 1, "a burst is settled once");
}

#[test]
fn a_snapshot_of_60000_services_arrives_in_messages_of_a_usual_size() {
    use prost::Message as _;

    let shared = cluster(60_000);
    let (model, user) = (shared.read(), all(&shared.read()));
    let empty = || tp_core::dns::Zone::new("cluster.local", "team-0", []);
    let (mut known, mut parts, mut zone) = (
        TableCursor::new(PART),
        SnapshotAssembler::default(),
        empty(),
    );

    let mut applied = 0;
    for change in all_changes(&mut known, &model, &user) {
        let event = wire::change(change);
        assert!(event.encoded_len() < LARGEST_MESSAGE / 16);
        if let Some(event) = event.event.and_then(|event| parts.take(event)) {
            assert!(matches!(event, Event::Snapshot(_)), "it is whole at once");
            apply(&mut zone, event);
            applied += 1;
        }
    }

    assert_eq!(applied, 1);
    for number in 0..60_000 {
        let (name, service) = service(number);
        let found = zone.service(&name.namespace, &name.name);
        assert_eq!(found.map(|it| &it.addresses), Some(&service.cluster_ips));
    }
}

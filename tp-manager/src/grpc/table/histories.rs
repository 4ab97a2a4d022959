//! Both ends of the table in one test: what the manager sends of a random history of the cluster
//! and of a user's rights makes of a session's names what a fresh snapshot would.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use tp_core::dns::{ServiceEntry, Zone};
use tp_proto::table::apply;

use super::*;
use crate::model::{Exposure, Model, Node, ObjectName, Pod, Service, Update};

const HISTORIES: u64 = 300;
const LOOKS: usize = 40;
/// Between two looks of the manager at the model.
const MOST_STEPS: usize = 5;
const NAMESPACES: [&str; 5] = ["shop", "team-b", "dev", "com", "web"];
const NAMES: [&str; 4] = ["web", "db", "shop", "test"];

/// SplitMix64: a seed gives the same history everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn octet(&mut self, bound: usize) -> u8 {
        u8::try_from(self.below(bound)).unwrap()
    }

    fn one<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// A cluster, and the namespaces that its user may reach.
struct World {
    random: Random,
    model: Model,
    rights: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            model: Model::default(),
            rights: BTreeSet::new(),
        };
        for _ in 0..30 {
            world.step();
        }
        world
    }

    fn step(&mut self) {
        let namespace = self.random.one(&NAMESPACES).to_owned();
        let name = ObjectName::new(namespace.clone(), self.random.one(&NAMES));
        let node = format!("node{}", self.random.below(3));
        match self.random.below(12) {
            0 | 1 => self.model.update_namespaces(Update::Applied(namespace, ())),
            2 => self.model.update_namespaces(Update::Removed(namespace)),
            3 | 4 => drop(self.rights.insert(namespace)),
            5 => drop(self.rights.remove(&namespace)),
            6 | 7 => {
                let service = self.service();
                self.model.update_services(Update::Applied(name, service));
            }
            8 => self.model.update_services(Update::Removed(name)),
            9 => {
                let ip = [10, 0, self.random.octet(4), self.random.octet(3)];
                let pod = Pod {
                    addresses: vec![ip.into()],
                    ..Pod::default()
                };
                self.model.update_pods(Update::Applied(name, pod));
            }
            10 => {
                let pods = Ipv4Addr::new(10, 244, self.random.octet(4), 0);
                let value = Node {
                    pod_networks: vec![IpNet::new(pods.into(), 24).unwrap()],
                    ..Node::default()
                };
                self.model.update_nodes(Update::Applied(node, value));
            }
            _ => self.watch_again(&node),
        }
    }

    /// A watch that broke begins with everything there is; a cluster grows.
    fn watch_again(&mut self, node: &str) {
        let services: BTreeMap<ObjectName, Service> = self
            .model
            .services()
            .filter(|_| self.random.below(4) > 0)
            .map(|(name, service)| (name.clone(), (**service).clone()))
            .collect();
        self.model.update_services(Update::Replaced(services));
        self.model.update_nodes(Update::Removed(node.to_owned()));
        let length = 16 + self.random.octet(3);
        let network = Ipv4Net::new(Ipv4Addr::new(10, 96, 0, 0), length).unwrap();
        self.model.set_service_networks(Some(vec![network.into()]));
    }

    /// With addresses that no other service has, as the API server hands them out, or headless.
    fn service(&mut self) -> Service {
        let taken: BTreeSet<IpAddr> = self
            .model
            .services()
            .flat_map(|(_, service)| service.cluster_ips.iter().copied())
            .collect();
        let last = self.random.octet(30);
        let candidates: [IpAddr; 2] = [
            Ipv4Addr::new(10, 96, 0, last).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
        ];
        let families = self.random.below(3);
        let free = candidates.into_iter().take(families);
        Service {
            cluster_ips: free.filter(|it| !taken.contains(it)).collect(),
            exposure: Exposure::default(),
        }
    }

    fn view(&self) -> View {
        let existing: BTreeSet<String> = self.model.namespaces().map(String::from).collect();
        let visible = self.rights.intersection(&existing).cloned().collect();
        View::of(&self.model, visible)
    }
}

fn told(zone: &mut Zone, events: Vec<TableEvent>, mut after_each: impl FnMut(&Zone)) {
    for event in events {
        apply(zone, event.event.unwrap());
        after_each(zone);
    }
}

fn addresses(entry: Option<&ServiceEntry>) -> Option<&[IpAddr]> {
    entry.map(|entry| entry.addresses.as_slice())
}

/// Names that are there before and after have, at every moment, the old address or the new one.
fn assert_no_hole(zone: &Zone, old: &View, new: &View, seed: u64) {
    for (name, before) in &old.services {
        let Some(after) = new.services.get(name) else {
            continue;
        };
        if !zone.has_namespace(&name.namespace) {
            continue;
        }
        let found = addresses(zone.service(&name.namespace, &name.name));
        let right = [&before.cluster_ips, &after.cluster_ips].map(Vec::as_slice);
        assert!(
            found.is_some_and(|it| right.contains(&it)),
            "{name:?} of history {seed} has {found:?}, not one of {right:?}"
        );
    }
}

fn follow(seed: u64, mapped: &[&str]) -> usize {
    let mapped = || mapped.iter().map(|&name| name.to_owned());
    let empty = || Zone::new("cluster.local", "shop", mapped());
    let mut world = World::new(seed);
    let mut zone = empty();
    let mut known = world.view();
    told(&mut zone, events_to(None, &known), |_| {});
    let mut frames = 0;
    for look in 0..LOOKS {
        for _ in 0..world.random.below(MOST_STEPS) {
            world.step();
        }
        let view = world.view();
        let events = events_to(Some(&known), &view);
        frames += events
            .iter()
            .filter(|it| matches!(it.event, Some(Event::Replaced(_))))
            .count();
        let stays = |zone: &Zone| assert_no_hole(zone, &known, &view, seed);
        told(&mut zone, events, stays);
        let mut fresh = empty();
        told(&mut fresh, events_to(None, &view), |_| {});
        assert_eq!(zone, fresh, "history {seed}, look {look}");
        known = view;
    }

    frames
}

#[test]
fn every_history_leaves_a_session_with_the_names_of_a_fresh_snapshot() {
    let mut frames = 0;
    for seed in 0..HISTORIES {
        frames += follow(seed, &[]);
        frames += follow(seed, &["shop", "com"]);
    }

    let looks = usize::try_from(HISTORIES).unwrap() * 2 * LOOKS;
    assert!(frames > looks / 10, "{frames} frames in {looks} looks");
}

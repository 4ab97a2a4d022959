//! Both ends of the table in one test: after a random history of the cluster and of a user's
//! rights, a session has the names of a fresh snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net};
use tp_core::dns::{ServiceEntry, Zone};
use tp_proto::{
    table::{SnapshotAssembler, apply},
    tunnel::table_event::Event,
};

use super::*;
use crate::model::{Model, Node, ObjectName, Pod, Service, Update};

const HISTORIES: u64 = 300;
const LOOKS: usize = 40;
/// Small, so that snapshots come in parts and sessions fall behind the log.
const SMALL_PART: usize = 1;
const LOG_ROOM: usize = 3;
/// Steps between two reads of the model.
const MOST_STEPS: usize = 5;
const NAMESPACES: [&str; 5] = ["shop", "team-b", "dev", "com", "web"];
const NAMES: [&str; 4] = ["web", "db", "shop", "test"];

/// A cluster, and the namespaces that its user may reach.
struct World {
    random: Rng,
    model: SharedModel,
    rights: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Rng::with_seed(seed),
            model: SharedModel::new(),
            rights: BTreeSet::new(),
        };
        world
            .model
            .update(|model| *model = Model::with_log(LOG_ROOM));
        for _ in 0..30 {
            world.step();
        }
        world
    }

    fn step(&mut self) {
        let namespace = NAMESPACES[self.random.usize(..NAMESPACES.len())].to_owned();
        let name = ObjectName::new(namespace.clone(), NAMES[self.random.usize(..NAMES.len())]);
        let node = format!("node{}", self.random.usize(..3));
        match self.random.usize(..12) {
            0 | 1 => self.update(|model| model.update_namespaces(Update::Applied(namespace, ()))),
            2 => self.update(|model| model.update_namespaces(Update::Removed(namespace))),
            3 | 4 => drop(self.rights.insert(namespace)),
            5 => drop(self.rights.remove(&namespace)),
            6 | 7 => {
                let service = self.service();
                self.update(|model| model.update_services(Update::Applied(name, service)));
            }
            8 => self.update(|model| model.update_services(Update::Removed(name))),
            9 => {
                let ip = [10, 0, self.random.u8(..4), own_octet(&name)];
                let pod = Pod {
                    addresses: vec![ip.into()],
                    ..Pod::default()
                };
                let is_gone = self.random.usize(..3) == 0;
                let update = match is_gone {
                    true => Update::Removed(name),
                    false => Update::Applied(name, pod),
                };
                self.update(|model| model.update_pods(update));
            }
            10 => {
                let pods = Ipv4Addr::new(10, 244, self.random.u8(..4), 0);
                let beside_pods = [10, 0, self.random.u8(..4) + 60, 1];
                let value = Node {
                    internal: vec![beside_pods.into()],
                    pod_networks: vec![IpNet::new(pods.into(), 24).unwrap()],
                    ..Node::default()
                };
                self.update(|model| model.update_nodes(Update::Applied(node, value)));
            }
            _ => self.watch_again(&node),
        }
    }

    fn update(&self, change: impl FnOnce(&mut Model)) {
        self.model.update(change);
    }

    /// A watch that broke begins with a complete listing; a cluster grows.
    fn watch_again(&mut self, node: &str) {
        let model = self.model.read();
        let services: BTreeMap<ObjectName, Service> = model
            .services()
            .filter(|_| self.random.usize(..4) > 0)
            .map(|(name, service)| (name.clone(), (**service).clone()))
            .collect();
        drop(model);
        self.update(|model| model.update_services(Update::Replaced(services)));
        self.update(|model| model.update_nodes(Update::Removed(node.to_owned())));
        let length = 16 + self.random.u8(..3);
        let network = Ipv4Net::new(Ipv4Addr::new(10, 96, 0, 0), length).unwrap();
        let found = (self.random.usize(..3) > 0).then(|| vec![network.into()]);
        self.update(|model| model.set_service_networks(found));
    }

    /// With addresses that no other service has, as the API server hands them out, or headless.
    fn service(&mut self) -> Service {
        let model = self.model.read();
        let taken: BTreeSet<IpAddr> = model
            .services()
            .flat_map(|(_, service)| service.cluster_ips.iter().copied())
            .collect();
        drop(model);
        let last = self.random.u8(..30);
        let candidates: [IpAddr; 2] = [
            Ipv4Addr::new(10, 96, 0, last).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
        ];
        let families = self.random.usize(..3);
        let free = candidates.into_iter().take(families);
        Service {
            cluster_ips: free.filter(|it| !taken.contains(it)).collect(),
            ..Service::default()
        }
    }

    /// Namespaces that the user may see.
    fn visible(&self) -> BTreeSet<String> {
        let model = self.model.read();
        let existing: BTreeSet<String> = model.namespaces().map(String::from).collect();

        self.rights.intersection(&existing).cloned().collect()
    }

    fn services(&self) -> BTreeMap<ObjectName, Arc<Service>> {
        let (model, visible) = (self.model.read(), self.visible());
        let services = model.services();
        let seen = services.filter(|(name, _)| visible.contains(&name.namespace));

        seen.map(|(name, it)| (name.clone(), Arc::clone(it)))
            .collect()
    }
}

/// A different one for each pod, so that no two share an address.
fn own_octet(name: &ObjectName) -> u8 {
    let index = |all: &[&str], one: &str| all.iter().position(|it| *it == one).unwrap();
    let octet = index(&NAMESPACES, &name.namespace) * NAMES.len() + index(&NAMES, &name.name);

    u8::try_from(octet).unwrap()
}

/// A session: the manager's position for it, and its own state.
struct Session {
    cursor: TableCursor,
    parts: SnapshotAssembler,
    zone: Zone,
}

/// Numbers of events by kind.
#[derive(Default)]
struct Counts {
    frames: usize,
    snapshots: usize,
    in_parts: usize,
}

impl Session {
    fn new(part: usize, mapped: &[&str]) -> Self {
        let mapped = mapped.iter().map(|&name| name.to_owned());
        Self {
            cursor: TableCursor::new(part),
            parts: SnapshotAssembler::default(),
            zone: Zone::new("cluster.local", "shop", mapped),
        }
    }

    /// Applies one step of the manager's.
    fn step(&mut self, world: &World, counts: &mut Counts, mut after_each: impl FnMut(&Zone)) {
        for change in self.cursor.follow(&world.model.read(), &world.visible()) {
            let event = wire::change(change).event.unwrap();
            counts.frames += usize::from(matches!(event, Event::Replaced(_)));
            if let Event::Snapshot(snapshot) = &event {
                counts.snapshots += 1;
                counts.in_parts += usize::from(snapshot.services_follow);
            }
            if let Some(event) = self.parts.take(event) {
                apply(&mut self.zone, event);
            }
            after_each(&self.zone);
        }
    }

    fn fresh(world: &World, mapped: &[&str]) -> Zone {
        let mut fresh = Self::new(PART, mapped);
        fresh.step(world, &mut Counts::default(), |_| {});
        assert!(!fresh.cursor.has_more());
        fresh.zone
    }
}

fn addresses(entry: Option<&ServiceEntry>) -> Option<&[IpAddr]> {
    entry.map(|entry| entry.addresses.as_slice())
}

type Services = BTreeMap<ObjectName, Arc<Service>>;

/// Asserts that names which exist before and after always have the old address or the new one.
fn assert_no_hole(zone: &Zone, old: &Services, new: &Services, seed: u64) {
    for (name, before) in old {
        let Some(after) = new.get(name) else {
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

fn assert_networks_are_those_of_a_listing(world: &World, seed: u64) {
    let model = world.model.read();
    let relisted = model.relisted();
    assert_eq!(
        model.pod_networks(),
        relisted.pod_networks(),
        "history {seed}"
    );
    let services = model.service_networks();
    assert_eq!(services, relisted.service_networks(), "history {seed}");
}

fn follow(seed: u64, part: usize, mapped: &[&str], counts: &mut Counts) {
    let mut world = World::new(seed);
    let mut session = Session::new(part, mapped);
    // The services when the session was last complete.
    let mut before = None;
    for look in 0..LOOKS {
        for _ in 0..world.random.usize(..MOST_STEPS) {
            world.step();
        }
        assert_networks_are_those_of_a_listing(&world, seed);
        let now = world.services();
        // The cluster may also change before everything is sent.
        let is_hasty = world.random.usize(..3) == 0;
        loop {
            session.step(&world, counts, |zone| {
                if let Some(before) = &before {
                    assert_no_hole(zone, before, &now, seed);
                }
            });
            if is_hasty || !session.cursor.has_more() {
                break;
            }
        }
        before = None;
        if !session.cursor.has_more() {
            let fresh = Session::fresh(&world, mapped);
            assert_eq!(session.zone, fresh, "history {seed}, look {look}");
            before = Some(now);
        }
    }
}

#[test]
fn every_history_leaves_a_session_with_the_names_of_a_fresh_snapshot() {
    let mut counts = Counts::default();
    for seed in 0..HISTORIES {
        follow(seed, PART, &[], &mut counts);
        follow(seed, SMALL_PART, &[], &mut counts);
        follow(seed, SMALL_PART, &["shop", "com"], &mut counts);
    }

    let runs = usize::try_from(HISTORIES).unwrap() * 3;
    let Counts {
        frames,
        snapshots,
        in_parts,
    } = counts;
    assert!(frames > runs * LOOKS / 10, "{frames} frames");
    // One at the beginning, the others where the log was too short.
    assert!(snapshots > runs * 5 / 4, "{snapshots} snapshots");
    assert!(in_parts > runs / 4, "{in_parts} snapshots in parts");
}

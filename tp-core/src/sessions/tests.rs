//! One registry of sessions beside a model of the data path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::*;

mod histories;

const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 1, 2));

/// The maps as the data path has them, and its decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Maps {
    networks: BTreeMap<(Slot, IpNet), NetworkRule>,
    name_servers: BTreeSet<(Slot, SocketAddr)>,
    candidates: BTreeMap<(u64, IpNet), Option<Slot>>,
    scopes: BTreeMap<SessionScope, Vec<Slot>>,
    /// By network namespace and user.
    levels: BTreeMap<SessionScope, Vec<u32>>,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    netns: u64,
    /// By level, from 1.
    cgroups: [u64; 3],
    uid: u32,
}

impl Maps {
    fn apply(&mut self, changes: Vec<MapChange>) {
        for change in changes {
            match change {
                MapChange::Network(slot, network, Some(rule)) => {
                    self.networks.insert((slot, network), rule);
                }
                MapChange::Network(slot, network, None) => {
                    self.networks.remove(&(slot, network));
                }
                MapChange::NameServer(slot, server, true) => {
                    self.name_servers.insert((slot, server));
                }
                MapChange::NameServer(slot, server, false) => {
                    self.name_servers.remove(&(slot, server));
                }
                MapChange::Candidate(netns, network, Some(candidate)) => {
                    let slot = match candidate {
                        Candidate::Of(slot) => Some(slot),
                        Candidate::Nobody => None,
                    };
                    self.candidates.insert((netns, network), slot);
                }
                MapChange::Candidate(netns, network, None) => {
                    self.candidates.remove(&(netns, network));
                }
                MapChange::Scope(scope, slots) if slots.is_empty() => {
                    self.scopes.remove(&scope);
                }
                MapChange::Scope(scope, slots) => {
                    self.scopes.insert(scope, slots);
                }
                MapChange::CgroupLevels(scope, levels) if levels.is_empty() => {
                    self.levels.remove(&scope);
                }
                MapChange::CgroupLevels(scope, levels) => {
                    self.levels.insert(scope, levels);
                }
            }
        }
    }

    /// As the eBPF programs decide.
    fn session_of(&self, task: Task, to: SocketAddr) -> Option<Slot> {
        longest(to.ip(), |network| {
            self.candidates.get(&(task.netns, network)).copied()
        })
        .flatten()?;
        let scope = |cgroup, uid| SessionScope {
            netns: task.netns,
            cgroup,
            uid,
        };
        let mut scopes = self
            .levels
            .get(&scope(None, Some(task.uid)))
            .into_iter()
            .flatten()
            .filter_map(|level| {
                let id = *task.cgroups.get(*level as usize - 1)?;
                let cgroup = Cgroup { id, level: *level };
                Some(scope(Some(cgroup), Some(task.uid)))
            })
            .chain([scope(None, Some(task.uid)), scope(None, None)]);
        let slots = scopes.find_map(|scope| self.scopes.get(&scope))?;

        slots.iter().copied().find(|slot| {
            let rule = longest(to.ip(), |network| {
                self.networks.get(&(*slot, network)).copied()
            });
            rule == Some(NetworkRule::Include) || self.name_servers.contains(&(*slot, to))
        })
    }
}

/// As in the kernel, IPv4 lies within IPv6.
fn longest<T>(address: IpAddr, get: impl Fn(IpNet) -> Option<T>) -> Option<T> {
    let of = |address: IpAddr, bits: u8| {
        (0..=bits)
            .rev()
            .find_map(|prefix_len| get(IpNet::new_assert(address, prefix_len).trunc()))
    };
    match address {
        IpAddr::V4(v4) => of(address, 32).or_else(|| of(v4.to_ipv6_mapped().into(), 95)),
        IpAddr::V6(_) => of(address, 128),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn include(networks: &[&str]) -> NetworkChanges {
    NetworkChanges {
        include: networks.iter().map(|text| net(text)).collect(),
        ..NetworkChanges::default()
    }
}

fn user(uid: u32) -> SessionScope {
    SessionScope {
        netns: 1,
        cgroup: None,
        uid: Some(uid),
    }
}

fn cgroup(id: u64, level: u32, uid: u32) -> SessionScope {
    SessionScope {
        cgroup: Some(Cgroup { id, level }),
        ..user(uid)
    }
}

fn task(uid: u32) -> Task {
    Task {
        netns: 1,
        cgroups: [1, 2, 3],
        uid,
    }
}

fn web(port: u16) -> SocketAddr {
    SocketAddr::new(WEB, port)
}

/// SessionRegistry together with their maps.
#[derive(Default)]
struct Machine {
    sessions: SessionRegistry,
    maps: Maps,
    opened: u8,
}

impl Machine {
    fn open(&mut self, scope: SessionScope) -> Slot {
        self.opened += 1;
        let own = vec![net(&format!("241.{}.0.0/16", self.opened))];
        let (slot, changes) = self.sessions.open(scope, own).unwrap();
        self.maps.apply(changes);

        slot
    }

    fn steer(&mut self, slot: Slot, steer: &NetworkChanges) {
        self.maps.apply(self.sessions.steer(slot, steer).unwrap());
    }

    fn serve(&mut self, slot: Slot, servers: &[SocketAddr]) {
        let changes = self.sessions.set_name_servers(slot, servers).unwrap();
        self.maps.apply(changes);
    }

    fn close(&mut self, slot: Slot) {
        let changes = self.sessions.close(slot);
        self.maps.apply(changes);
        self.sessions.release(slot);
    }
}

#[test]
fn the_innermost_cgroup_decides_then_the_user_then_everybody() {
    let mut machine = Machine::default();
    let scopes = [
        SessionScope {
            uid: None,
            ..user(0)
        },
        user(7),
        cgroup(1, 1, 7),
        cgroup(3, 3, 7),
    ];
    let mut expected = Vec::new();
    for scope in scopes {
        let slot = machine.open(scope);
        machine.steer(slot, &include(&["10.96.0.0/16"]));
        expected.push(slot);
        assert_eq!(machine.maps.session_of(task(7), web(80)), Some(slot));
    }

    assert_eq!(machine.maps.session_of(task(8), web(80)), Some(expected[0]));
    let elsewhere = Task {
        netns: 2,
        ..task(7)
    };
    assert_eq!(machine.maps.session_of(elsewhere, web(80)), None);
    // What the session of the scope does not steer, no other one does.
    let inner = expected[3];
    machine.steer(
        inner,
        &NetworkChanges {
            exclude: vec![net("10.96.1.0/24")],
            ..NetworkChanges::default()
        },
    );
    assert_eq!(machine.maps.session_of(task(7), web(80)), None);
    for slot in expected.iter().rev() {
        machine.close(*slot);
    }
    assert_eq!(machine.maps, Maps::default());
}

#[test]
fn of_two_sessions_of_a_scope_the_first_has_what_both_steer() {
    let mut machine = Machine::default();
    let first = machine.open(user(7));
    let second = machine.open(user(7));
    machine.steer(
        first,
        &NetworkChanges {
            include: vec![net("10.0.0.0/8")],
            exclude: vec![net("10.96.0.0/16")],
            ..NetworkChanges::default()
        },
    );
    machine.steer(
        second,
        &include(&["10.96.1.0/24", "10.1.0.0/16", "172.20.0.0/16"]),
    );
    machine.serve(first, &[web(53)]);
    machine.serve(second, &[web(53)]);

    assert_eq!(machine.maps.session_of(task(7), web(80)), Some(second));
    assert_eq!(machine.maps.session_of(task(7), web(53)), Some(first));
    let overlaps = machine.sessions.overlaps(second);
    assert_eq!(overlaps.networks, [(net("10.1.0.0/16"), first)]);
    assert_eq!(overlaps.name_servers, [(web(53), first)]);
    assert_eq!(machine.sessions.overlaps(first), Overlaps::default());

    // The order is that of opening, whatever slot is free.
    machine.close(first);
    let third = machine.open(user(7));
    assert_eq!(third, first);
    machine.serve(third, &[web(53)]);
    assert_eq!(machine.maps.session_of(task(7), web(53)), Some(second));
}

#[test]
fn nobody_steers_aliases_nor_what_is_local() {
    let mut machine = Machine::default();
    let one = machine.open(user(7));
    machine.steer(one, &include(&["0.0.0.0/0", "241.2.3.0/24", "127.0.0.0/9"]));
    let other = machine.open(user(8));

    let to = |text: &str| text.parse::<SocketAddr>().unwrap();
    for local in ["241.1.0.7:80", "241.2.3.4:80", "127.0.0.1:80", "0.0.0.0:80"] {
        assert_eq!(machine.maps.session_of(task(7), to(local)), None, "{local}");
    }
    machine.close(other);
    assert_eq!(
        machine.maps.session_of(task(7), to("241.2.3.4:80")),
        Some(one)
    );
    // A name server may be local.
    machine.serve(one, &[to("127.0.0.53:53")]);
    assert_eq!(
        machine.maps.session_of(task(7), to("127.0.0.53:53")),
        Some(one)
    );
    assert_eq!(machine.maps.session_of(task(7), to("127.0.0.53:80")), None);
}

#[test]
fn a_slot_is_taken_until_it_is_released() {
    let mut sessions = SessionRegistry::default();
    let (first, _) = sessions.open(user(7), Vec::new()).unwrap();
    sessions.close(first);

    let (second, _) = sessions.open(user(7), Vec::new()).unwrap();
    assert_ne!(second, first);
    assert!(!sessions.is_empty_but_for(&BTreeSet::new()));
    sessions.close(second);
    sessions.release(second);
    assert!(!sessions.is_empty_but_for(&BTreeSet::new()));
    sessions.release(first);
    assert!(sessions.is_empty_but_for(&BTreeSet::new()));
}

#[test]
fn each_room_has_its_bound_and_a_refusal_changes_nothing() {
    let mut sessions = SessionRegistry::default();
    for _ in 0..MAX_PER_SCOPE {
        sessions.open(user(7), Vec::new()).unwrap();
    }
    assert_eq!(
        sessions.open(user(7), Vec::new()).unwrap_err(),
        SessionsError::TooManyInScope
    );
    for level in 1..=MAX_CGROUP_LEVELS as u32 {
        sessions.open(cgroup(100, level, 7), Vec::new()).unwrap();
    }
    assert_eq!(
        sessions.open(cgroup(100, 9, 7), Vec::new()).unwrap_err(),
        SessionsError::TooManyLevels
    );
    sessions.open(cgroup(102, 9, 8), Vec::new()).unwrap();
    let (slot, _) = sessions.open(cgroup(101, 8, 7), Vec::new()).unwrap();
    let many: Vec<IpNet> = (0..=MAX_NETWORKS as u32)
        .map(|n| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n))))
        .collect();
    let all = |include: &[IpNet]| NetworkChanges {
        include: include.to_vec(),
        ..NetworkChanges::default()
    };
    assert_eq!(
        sessions.steer(slot, &all(&many)).unwrap_err(),
        SessionsError::TooManyNetworks
    );
    assert!(sessions.sessions[&slot].networks.is_empty());
    sessions.steer(slot, &all(&many[1..])).unwrap();
    // One goes, one comes.
    let swap = NetworkChanges {
        include: vec![many[0]],
        remove: vec![many[1]],
        ..NetworkChanges::default()
    };
    sessions.steer(slot, &swap).unwrap();
    let servers: Vec<SocketAddr> = (0..=MAX_NAME_SERVERS as u16).map(web).collect();
    assert_eq!(
        sessions.set_name_servers(slot, &servers).unwrap_err(),
        SessionsError::TooManyNameServers
    );
    assert!(sessions.sessions[&slot].name_servers.is_empty());
    assert_eq!(
        sessions.sessions.len(),
        MAX_PER_SCOPE + MAX_CGROUP_LEVELS + 2
    );
    for uid in sessions.sessions.len()..MAX_SESSIONS {
        sessions.open(user(100 + uid as u32), Vec::new()).unwrap();
    }
    assert_eq!(
        sessions.open(user(99), Vec::new()).unwrap_err(),
        SessionsError::TooManySessions
    );
}

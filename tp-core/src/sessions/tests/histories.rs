//! Random histories, folded through the session's end and the registry.

use super::*;

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;

        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// What one session was told, in the order of opening.
#[derive(Default, Clone)]
struct Told {
    networks: BTreeMap<IpNet, NetworkRule>,
    servers: Vec<SocketAddr>,
}

#[test]
fn after_any_history_the_maps_are_those_of_a_fresh_start_and_the_rule_holds() {
    let scopes = [
        user(7),
        user(8),
        cgroup(2, 2, 7),
        cgroup(3, 3, 7),
        SessionScope {
            uid: None,
            ..user(0)
        },
    ];
    let networks = [
        "10.0.0.0/8",
        "10.96.0.0/16",
        "10.96.1.0/24",
        "10.96.1.2/32",
        "0.0.0.0/0",
    ];
    let servers = [web(53), web(54), "127.0.0.53:53".parse().unwrap()];
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut machine = Machine::default();
        let mut live: Vec<(Slot, SessionScope, Told)> = Vec::new();
        for _ in 0..60 {
            match random.below(6) {
                0 if live.len() < 6 => {
                    let scope = random.of(&scopes);
                    live.push((machine.open(scope), scope, Told::default()));
                }
                1 if !live.is_empty() => {
                    let (slot, ..) = live.remove(random.below(live.len()));
                    machine.close(slot);
                }
                2 if !live.is_empty() => {
                    let index = random.below(live.len());
                    let count = random.below(3);
                    live[index].2.servers = (0..count).map(|_| random.of(&servers)).collect();
                    machine.serve(live[index].0, &live[index].2.servers);
                }
                _ if !live.is_empty() => {
                    let index = random.below(live.len());
                    let mut steer = NetworkChanges::default();
                    let network = net(random.of(&networks));
                    let told = &mut live[index].2.networks;
                    match random.below(3) {
                        0 => {
                            steer.remove.push(network);
                            told.remove(&network);
                        }
                        1 => {
                            steer.include.push(network);
                            told.insert(network, NetworkRule::Include);
                        }
                        _ => {
                            // Exclusion wins in one packet.
                            steer.include.push(network);
                            steer.exclude.push(network);
                            told.insert(network, NetworkRule::Exclude);
                        }
                    }
                    machine.steer(live[index].0, &steer);
                }
                _ => {}
            }
        }
        compare_with_a_fresh_start(&machine, &live);
        compare_with_the_rule(&machine, &live);
    }
}

fn compare_with_a_fresh_start(machine: &Machine, live: &[(Slot, SessionScope, Told)]) {
    let mut fresh = Machine::default();
    // The slots are others, so they are compared by the order of opening.
    let place = |slots: &[Slot], slot: Slot| slots.iter().position(|it| *it == slot);
    let mut slots = Vec::new();
    for (_, scope, told) in live {
        let slot = fresh.open(*scope);
        slots.push(slot);
        let of = |rule| {
            let networks = told.networks.iter().filter(|(_, it)| **it == rule);
            networks.map(|(network, _)| *network).collect()
        };
        let steer = NetworkChanges {
            include: of(NetworkRule::Include),
            exclude: of(NetworkRule::Exclude),
            remove: Vec::new(),
        };
        fresh.steer(slot, &steer);
        fresh.serve(slot, &told.servers);
    }
    let old: Vec<Slot> = live.iter().map(|it| it.0).collect();
    let placed = |maps: &Maps, slots: &[Slot]| {
        let networks: BTreeMap<_, _> = maps
            .networks
            .iter()
            .map(|((slot, network), rule)| ((place(slots, *slot), *network), *rule))
            .collect();
        let servers: BTreeSet<_> = maps
            .name_servers
            .iter()
            .map(|(slot, server)| (place(slots, *slot), *server))
            .collect();
        let candidates: BTreeMap<_, _> = maps
            .candidates
            .iter()
            // Each opening has aliases of its own.
            .filter(|(_, slot)| slot.is_some())
            .map(|(key, slot)| (*key, slot.and_then(|slot| place(slots, slot))))
            .collect();
        let scopes: BTreeMap<_, Vec<_>> = maps
            .scopes
            .iter()
            .map(|(scope, of)| (*scope, of.iter().map(|slot| place(slots, *slot)).collect()))
            .collect();
        (networks, servers, candidates, scopes, maps.levels.clone())
    };

    assert_eq!(placed(&machine.maps, &old), placed(&fresh.maps, &slots));
    let own = machine.maps.candidates.values().filter(|it| it.is_none());
    assert_eq!(own.count(), live.len());
}

/// The rule of the module, from what the sessions were told alone.
fn compare_with_the_rule(machine: &Machine, live: &[(Slot, SessionScope, Told)]) {
    for uid in [7, 8, 9] {
        for inner in [[9, 9, 9], [9, 2, 9], [9, 2, 3]] {
            let task = Task {
                cgroups: inner,
                ..task(uid)
            };
            let rank = |scope: &SessionScope| match (scope.cgroup, scope.uid) {
                (Some(it), Some(of)) if of == uid => {
                    (inner[it.level as usize - 1] == it.id).then_some(10 + it.level)
                }
                (None, Some(of)) if of == uid => Some(2),
                (None, None) => Some(1),
                _ => None,
            };
            let best = live.iter().filter_map(|(_, scope, _)| rank(scope)).max();
            for to in [web(53), web(54), web(80), "10.1.1.1:80".parse().unwrap()] {
                let takes = |told: &Told| {
                    let rule = longest(to.ip(), |network| told.networks.get(&network).copied());
                    rule == Some(NetworkRule::Include) || told.servers.contains(&to)
                };
                let expected = live
                    .iter()
                    .filter(|(_, scope, _)| rank(scope).is_some() && rank(scope) == best)
                    .find(|(.., told)| takes(told))
                    .map(|(slot, ..)| *slot);
                assert_eq!(machine.maps.session_of(task, to), expected, "{task:?} {to}");
            }
        }
    }
}

#[test]
fn whatever_is_lost_on_the_way_the_root_daemon_ends_with_what_the_session_wants() {
    let all: Vec<IpNet> = [
        "10.0.0.0/8",
        "10.96.0.0/16",
        "10.96.1.0/24",
        "172.20.0.0/16",
        "fd00::/8",
    ]
    .map(net)
    .into();
    for seed in 1..300 {
        let mut random = Random(seed);
        let mut machine = Machine::default();
        let slot = machine.open(user(7));
        let fresh = machine.maps.clone();
        let mut told = ToldNetworks::default();
        for _ in 0..12 {
            let wanted: Vec<(IpNet, NetworkRule)> = all
                .iter()
                .filter_map(|network| match random.below(3) {
                    0 => Some((*network, NetworkRule::Include)),
                    1 => Some((*network, NetworkRule::Exclude)),
                    _ => None,
                })
                .collect();
            let of = |rule| -> Vec<IpNet> {
                let networks = wanted.iter().filter(|(_, it)| *it == rule);
                networks.map(|(network, _)| *network).collect()
            };
            let (include, exclude) = (of(NetworkRule::Include), of(NetworkRule::Exclude));
            // Until a round is not disturbed.
            loop {
                let limit = 1 + random.below(3);
                let mut is_whole = true;
                for changes in told.changes(&include, &exclude, limit) {
                    told.handle_sent(&changes);
                    // The request is lost, or its answer, or nothing.
                    let fate = random.below(4);
                    if fate != 0 {
                        machine.steer(slot, &changes);
                    }
                    if fate < 2 {
                        is_whole = false;
                        break;
                    }
                    told.handle_confirmed(&changes);
                }
                if is_whole {
                    break;
                }
            }

            let mut expected = fresh.clone();
            for (network, rule) in &wanted {
                expected.networks.insert((slot, *network), *rule);
                if *rule == NetworkRule::Include {
                    expected.candidates.insert((1, *network), Some(slot));
                }
            }
            assert_eq!(machine.maps, expected);
            assert!(told.changes(&include, &exclude, 10).is_empty());
        }
    }
}

#[test]
fn each_destination_goes_from_its_old_rule_to_its_new_one_at_once() {
    let networks = [
        "10.0.0.0/8",
        "10.64.0.0/10",
        "10.96.0.0/12",
        "10.96.0.0/16",
        "10.96.1.0/24",
        "10.96.1.2/32",
        "0.0.0.0/0",
        "::/0",
    ]
    .map(net);
    let destinations = [
        "10.96.1.2:80",
        "10.96.1.3:80",
        "10.96.9.9:80",
        "10.1.1.1:80",
        "[fd00::1]:80",
    ]
    .map(|text| text.parse::<SocketAddr>().unwrap());
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut machine = Machine::default();
        let slot = machine.open(user(7));
        let mut told = ToldNetworks::default();
        for _ in 0..8 {
            let (mut include, mut exclude) = (Vec::new(), Vec::new());
            for network in networks {
                match random.below(3) {
                    0 => include.push(network),
                    1 => exclude.push(network),
                    _ => {}
                }
            }
            let mut seen: Vec<Vec<Option<Slot>>> = vec![Vec::new(); destinations.len()];
            let mut look = |maps: &Maps| {
                for (destination, seen) in destinations.iter().zip(&mut seen) {
                    seen.push(maps.session_of(task(7), *destination));
                }
            };
            look(&machine.maps);
            for changes in told.changes(&include, &exclude, 1 + random.below(3)) {
                told.handle_sent(&changes);
                for change in machine.sessions.steer(slot, &changes).unwrap() {
                    machine.maps.apply(vec![change]);
                    look(&machine.maps);
                }
                told.handle_confirmed(&changes);
            }

            for (destination, mut seen) in destinations.iter().zip(seen) {
                let wanted = |rule, networks: &[IpNet]| {
                    let matching = networks.iter().filter(|it| it.contains(&destination.ip()));
                    matching.map(|it| (it.prefix_len(), rule)).max()
                };
                let is_included = wanted(1, &include) > wanted(0, &exclude)
                    && wanted(1, &include).map(|it| it.0) > wanted(0, &exclude).map(|it| it.0);
                assert_eq!(
                    seen.last(),
                    Some(&is_included.then_some(slot)),
                    "{destination}"
                );
                seen.dedup();
                assert!(seen.len() <= 2, "{destination}: {seen:?}");
            }
        }
    }
}

#[test]
fn an_address_has_one_name_in_whatever_form_it_is_told() {
    let mut machine = Machine::default();
    let mine = machine.open(user(7));
    machine.steer(mine, &include(&["10.96.0.0/16"]));
    machine.serve(mine, &[web(53)]);
    let before = machine.maps.clone();
    let other = machine.open(user(8));
    machine.steer(
        other,
        &include(&["::ffff:10.96.0.0/112", "::ffff:127.0.0.0/104"]),
    );
    machine.serve(other, &["[::ffff:10.96.1.2]:53".parse().unwrap()]);

    assert_eq!(machine.maps.session_of(task(8), web(80)), Some(other));
    let loopback = "127.0.0.1:80".parse().unwrap();
    assert_eq!(machine.maps.session_of(task(8), loopback), None);
    let own = include(&["::ffff:241.1.0.0/112"]);
    machine.steer(other, &own);
    machine.close(other);
    assert_eq!(machine.maps, before);

    // All of IPv6 is not all of IPv4, which the kernel has within it.
    let wide = machine.open(user(9));
    machine.steer(wide, &include(&["::/0"]));
    assert_eq!(machine.maps.session_of(task(9), web(80)), None);
    machine.steer(wide, &include(&["0.0.0.0/0"]));
    assert_eq!(machine.maps.session_of(task(9), web(80)), Some(wide));
    let mut nothing = include(&[]);
    nothing.remove.push(net("0.0.0.0/0"));
    machine.steer(wide, &nothing);
    assert_eq!(machine.maps.session_of(task(9), web(80)), None);
}

#[test]
fn a_session_that_has_twice_what_it_wants_makes_room_first() {
    let mut told = ToldNetworks::default();
    let networks = |third: u32, count: usize| -> Vec<IpNet> {
        (0..count as u32)
            .map(|n| {
                IpNet::from(IpAddr::from(Ipv4Addr::from(
                    0x0a00_0000 + (third << 16) + n,
                )))
            })
            .collect()
    };
    let mut machine = Machine::default();
    let slot = machine.open(user(7));
    // Twice interrupted before anything is removed.
    for third in 1..=2 {
        for changes in told.changes(&networks(third, MAX_WANTED_NETWORKS), &[], 1024) {
            if changes.remove.is_empty() {
                told.handle_sent(&changes);
                machine.steer(slot, &changes);
                told.handle_confirmed(&changes);
            }
        }
    }

    let wanted = networks(3, MAX_WANTED_NETWORKS);
    for changes in told.changes(&wanted, &[], 1024) {
        told.handle_sent(&changes);
        machine.steer(slot, &changes);
        told.handle_confirmed(&changes);
    }
    let (_, steered) = machine
        .maps
        .networks
        .iter()
        .fold((0, 0), |(all, steered), (_, rule)| {
            (
                all + 1,
                steered + usize::from(*rule == NetworkRule::Include),
            )
        });
    assert_eq!(steered, MAX_WANTED_NETWORKS);
}

//! Who holds an intercepted port, of Intercepts in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tp_core::intercept::holders::{
    Claim, Claimant, DISCONNECTED_AFTER, Standing, WorkloadKey, standings,
};

fn claim(uid: &str, created: i64, user: &str) -> Claim {
    Claim {
        uid: uid.into(),
        created,
        user: user.into(),
        session: format!("session-of-{user}"),
        workload: WorkloadKey {
            namespace: "shop".into(),
            kind: "Deployment".into(),
            name: "web".into(),
        },
        ports: vec![8080],
        pod: None,
    }
}

fn connected(session: &str) -> Option<Claimant> {
    let user = session.strip_prefix("session-of-")?;

    Some(Claimant {
        user: user.into(),
        disconnected: None,
    })
}

fn holds_all() -> Standing {
    let others = BTreeMap::new();

    Standing::Holds { others }
}

fn held_by(uid: &str) -> Standing {
    let others = [(8080, uid.to_owned())].into();

    Standing::Holds { others }
}

#[test]
fn the_older_of_two_intercepts_holds_the_port_whatever_order_they_arrive_in() {
    let (old, new) = (claim("z", 10, "alice"), claim("a", 11, "bob"));

    for claims in [[&old, &new], [&new, &old]] {
        let standings = standings(claims, connected, DISCONNECTED_AFTER);
        assert_eq!(standings["z"], holds_all());
        assert_eq!(standings["a"], held_by("z"));
    }
}

#[test]
fn of_two_of_one_second_the_smaller_uid_holds_the_port() {
    let (one, other) = (claim("b", 10, "alice"), claim("a", 10, "bob"));

    let standings = standings([&one, &other], connected, DISCONNECTED_AFTER);

    assert_eq!(standings["a"], holds_all());
    assert_eq!(standings["b"], held_by("a"));
}

#[test]
fn an_intercept_of_a_session_that_is_gone_or_of_somebody_else_holds_nothing() {
    let gone = Claim {
        session: "gone".into(),
        ..claim("a", 1, "alice")
    };
    let forged = Claim {
        session: "session-of-bob".into(),
        ..claim("b", 2, "mallory")
    };
    let honest = claim("c", 3, "bob");

    let standings = standings([&gone, &forged, &honest], connected, DISCONNECTED_AFTER);

    assert_eq!(standings["a"], Standing::Orphan);
    assert_eq!(standings["b"], Standing::Orphan);
    assert_eq!(standings["c"], holds_all());
}

#[test]
fn a_workstation_that_is_away_for_ten_minutes_blocks_nobody() {
    let (old, new) = (claim("a", 10, "alice"), claim("b", 11, "bob"));
    let away = |since: Duration| {
        move |session: &str| {
            let owner = connected(session)?;
            let disconnected = Some(since).filter(|_| owner.user == "alice");
            Some(Claimant {
                disconnected,
                ..owner
            })
        }
    };

    let shortly = standings(
        [&old, &new],
        away(DISCONNECTED_AFTER - Duration::from_secs(1)),
        DISCONNECTED_AFTER,
    );
    assert_eq!(shortly["b"], held_by("a"));
    let long = standings([&old, &new], away(DISCONNECTED_AFTER), DISCONNECTED_AFTER);
    assert_eq!(long["a"], Standing::Away);
    assert_eq!(long["b"], holds_all());
}

#[test]
fn a_users_intercept_of_before_a_reconnect_does_not_block_the_one_after_it() {
    let before = Claim {
        session: "before".into(),
        ..claim("a", 10, "alice")
    };
    let (after, bob) = (claim("b", 12, "alice"), claim("c", 11, "bob"));
    let owner = |session: &str| match session {
        "before" => Some(Claimant {
            user: "alice".into(),
            disconnected: Some(Duration::from_secs(5)),
        }),
        session => connected(session),
    };

    let alone = standings([&before, &after], owner, DISCONNECTED_AFTER);
    assert_eq!(alone["a"], held_by("b"));
    assert_eq!(alone["b"], holds_all());
    // Others that came in between do not lose to it.
    let three = standings([&before, &after, &bob], owner, DISCONNECTED_AFTER);
    assert_eq!(three["c"], holds_all());
    assert_eq!(three["b"], held_by("c"));
}

#[test]
fn other_ports_workloads_and_pods_are_no_conflict() {
    let pod = |uid: &str, pod: Option<&str>| Claim {
        pod: pod.map(str::to_owned),
        ..claim(uid, 1, "alice")
    };
    let mut port = claim("port", 2, "bob");
    port.ports = vec![9090];
    let mut workload = claim("workload", 2, "bob");
    workload.workload.namespace = "bank".into();
    let (one, two) = (pod("one", Some("web-1")), pod("two", Some("web-2")));
    let all = claim("zall", 3, "bob");

    let standings = standings(
        [&one, &two, &port, &workload, &all],
        connected,
        DISCONNECTED_AFTER,
    );

    for uid in ["one", "two", "port", "workload"] {
        assert_eq!(standings[uid], holds_all(), "{uid}");
    }
    assert_eq!(standings["zall"], held_by("one"));
}

#[test]
fn an_intercept_of_several_ports_holds_those_that_nobody_else_has() {
    let one = claim("a", 1, "alice");
    let mut several = claim("b", 2, "bob");
    several.ports = vec![9090, 8080];
    let mut third = claim("c", 3, "carol");
    third.ports = vec![9090];

    let standings = standings([&one, &several, &third], connected, DISCONNECTED_AFTER);

    assert_eq!(standings["b"], held_by("a"));
    let others = [(9090, "b".to_owned())].into();
    assert_eq!(standings["c"], Standing::Holds { others });
}

/// The rule as it reads, each claim compared with each.
fn simple(
    claims: &[Claim],
    claimant: impl Fn(&str) -> Option<Claimant>,
) -> BTreeMap<&str, Standing> {
    let mut found = BTreeMap::new();
    let mut ranked = Vec::new();
    for claim in claims {
        let Some(owner) = claimant(&claim.session).filter(|it| it.user == claim.user) else {
            found.insert(claim.uid.as_str(), Standing::Orphan);
            continue;
        };
        if owner
            .disconnected
            .is_some_and(|it| it >= DISCONNECTED_AFTER)
        {
            found.insert(claim.uid.as_str(), Standing::Away);
        } else {
            ranked.push((claim, owner.disconnected.is_some()));
        }
    }
    ranked.sort_by_key(|(claim, _)| (claim.created, claim.uid.clone()));
    let overlap = |one: &Claim, other: &Claim, port: u16| {
        let same_pod = one.pod == other.pod || one.pod.is_none() || other.pod.is_none();
        same_pod && one.workload == other.workload && other.ports.contains(&port)
    };
    let mut held: Vec<(&Claim, u16)> = Vec::new();
    for (index, (claim, is_left)) in ranked.iter().enumerate() {
        let mut others = BTreeMap::new();
        for port in claim.ports.iter().copied().collect::<BTreeSet<u16>>() {
            let older = held
                .iter()
                .find(|(holder, at)| *at == port && overlap(claim, holder, port));
            let own = ranked[index + 1..].iter().find(|(newer, left)| {
                *is_left && !left && newer.user == claim.user && overlap(claim, newer, port)
            });
            match older.map(|(it, _)| *it).or(own.map(|(it, _)| *it)) {
                Some(holder) => drop(others.insert(port, holder.uid.clone())),
                None => held.push((claim, port)),
            }
        }
        found.insert(claim.uid.as_str(), Standing::Holds { others });
    }

    found
}

fn random_claim(random: &mut fastrand::Rng, number: usize) -> Claim {
    let user = format!("user{}", random.u8(..3));
    let ports = random.usize(1..4);
    let ports = (0..ports).map(|_| 8080 + random.u16(..3)).collect();

    Claim {
        session: format!("{user}-{}", random.u8(..4)),
        ports,
        pod: random.bool().then(|| format!("web-{}", random.u8(..2))),
        workload: WorkloadKey {
            name: format!("web{}", random.u8(..2)),
            ..claim("", 0, "").workload
        },
        // Many of one second.
        ..claim(
            &format!("{:x}-{number}", random.u8(..)),
            random.i64(..4),
            &user,
        )
    }
}

#[test]
fn whatever_has_happened_the_standings_are_those_of_the_rule() {
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let claims: Vec<Claim> = (0..random.usize(1..14))
            .map(|number| random_claim(&mut random, number))
            .collect();
        // As one replica knows them: another may not have heard of each end yet.
        let mut views = BTreeMap::new();
        for number in 0..12 {
            let user = format!("user{}", number / 4);
            let disconnected = match random.u8(..4) {
                0 => Some(Duration::from_secs(random.u64(..1200))),
                1 => Some(Duration::from_secs(5)),
                _ => None,
            };
            let session = format!("{user}-{}", number % 4);
            if random.u8(..8) > 0 {
                views.insert(session, Claimant { user, disconnected });
            }
        }
        let view = |session: &str| views.get(session).cloned();

        let known = standings(&claims, view, DISCONNECTED_AFTER);

        assert_eq!(known, simple(&claims, view), "seed {seed}");
    }
}

#[test]
fn many_intercepts_of_one_port_are_ranked_as_fast_as_those_of_many() {
    let of = |ports: usize| {
        let claims: Vec<Claim> = (0..40_000)
            .map(|number: usize| Claim {
                ports: vec![u16::try_from(number % ports).expect("few")],
                pod: Some(format!("web-{number}")),
                ..claim(&format!("{number:06}"), 1, "alice")
            })
            .collect();
        let left = |_: &str| {
            Some(Claimant {
                user: "alice".into(),
                disconnected: Some(Duration::from_secs(5)),
            })
        };
        let begun = Instant::now();
        let known = standings(&claims, left, DISCONNECTED_AFTER);
        assert_eq!(known.len(), claims.len());

        begun.elapsed()
    };

    let (many, one) = (of(10_000), of(1));

    // Compared with each other it takes minutes.
    assert!(
        one < many * 20 + Duration::from_secs(1),
        "{one:?}, {many:?}"
    );
}

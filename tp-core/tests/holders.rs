//! Who holds an intercepted port, of Intercepts in any order.

use std::{collections::BTreeMap, time::Duration};

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
        let standings = standings(claims, connected);
        assert_eq!(standings["z"], holds_all());
        assert_eq!(standings["a"], held_by("z"));
    }
}

#[test]
fn of_two_of_one_second_the_smaller_uid_holds_the_port() {
    let (one, other) = (claim("b", 10, "alice"), claim("a", 10, "bob"));

    let standings = standings([&one, &other], connected);

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

    let standings = standings([&gone, &forged, &honest], connected);

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
    );
    assert_eq!(shortly["b"], held_by("a"));
    let long = standings([&old, &new], away(DISCONNECTED_AFTER));
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

    let alone = standings([&before, &after], owner);
    assert_eq!(alone["a"], held_by("b"));
    assert_eq!(alone["b"], holds_all());
    // Others that came in between do not lose to it.
    let three = standings([&before, &after, &bob], owner);
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

    let standings = standings([&one, &two, &port, &workload, &all], connected);

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

    let standings = standings([&one, &several, &third], connected);

    assert_eq!(standings["b"], held_by("a"));
    let others = [(9090, "b".to_owned())].into();
    assert_eq!(standings["c"], Standing::Holds { others });
}

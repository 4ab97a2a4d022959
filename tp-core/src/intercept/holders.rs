//! Who holds an intercepted port.
//!
//! Of two Intercepts of one port of one workload the older holds it: by the second in which it was
//! made, then by its UID, so that everybody who knows the same objects comes to the same answer.
//! An Intercept whose Session is gone, is somebody else's, or has been without a connection for
//! [`DISCONNECTED_AFTER`], holds nothing.

use std::{collections::BTreeMap, time::Duration};

/// Age of a Session's disconnection at which its Intercepts hold nothing any more.
pub const DISCONNECTED_AFTER: Duration = Duration::from_secs(600);

/// An Intercept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its UID.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Who made it.
    pub user: String,
    /// UID of the Session that it names.
    pub session: String,
    /// Whose traffic it is.
    pub workload: Workload,
    /// Ports of the containers.
    pub ports: Vec<u16>,
    /// The one pod that it is of; `None` for all.
    pub pod: Option<String>,
}

/// A workload of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Namespace of the workload.
    pub namespace: String,
    /// Such as `Deployment`.
    pub kind: String,
    /// Name of the workload.
    pub name: String,
}

/// A valid Session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its user.
    pub user: String,
    /// How long it has been without a connection; `None` if it has one.
    pub disconnected: Option<Duration>,
}

/// What an Intercept holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its Session is not valid, or is another user's: it is never served.
    Orphan,
    /// Its workstation has been away for too long: others may have its ports.
    Away,
    /// All of its ports but these, which the Intercepts with these UIDs hold.
    Holds {
        /// The holder by port; empty if the Intercept holds all of its own.
        others: BTreeMap<u16, String>,
    },
}

/// The standing of every claim, by UID. `owner` knows the valid Sessions by their UIDs.
pub fn standings<'a>(
    claims: impl IntoIterator<Item = &'a Claim>,
    owner: impl Fn(&str) -> Option<Owner>,
) -> BTreeMap<&'a str, Standing> {
    let mut standings = BTreeMap::new();
    let mut ranked = Vec::new();
    for claim in claims {
        match owner(&claim.session).filter(|owner| owner.user == claim.user) {
            None => drop(standings.insert(claim.uid.as_str(), Standing::Orphan)),
            Some(owner) if is_away(&owner) => {
                standings.insert(&claim.uid, Standing::Away);
            }
            Some(owner) => ranked.push((claim, owner.disconnected.is_some())),
        }
    }
    ranked
        .sort_by(|(one, _), (other, _)| (one.created, &one.uid).cmp(&(other.created, &other.uid)));

    // Those that hold a port of a workload, in the order of their age.
    let mut holders: BTreeMap<(&Workload, u16), Vec<&Claim>> = BTreeMap::new();
    // A user's connected claims go before the user's own that are left from an earlier connection.
    for (index, (claim, is_left)) in ranked.iter().enumerate() {
        let mut others = BTreeMap::new();
        for port in &claim.ports {
            let newer = ranked[index + 1..].iter();
            let successor = newer
                .filter(|(newer, left)| *is_left && !left && newer.user == claim.user)
                .find(|(newer, _)| newer.ports.contains(port) && overlap(newer, claim));
            let holding = holders.entry((&claim.workload, *port)).or_default();
            let older = holding.iter().find(|holder| overlap(holder, claim));
            match older.copied().or(successor.map(|(claim, _)| *claim)) {
                Some(holder) => drop(others.insert(*port, holder.uid.clone())),
                None => holding.push(claim),
            }
        }
        standings.insert(&claim.uid, Standing::Holds { others });
    }

    standings
}

fn is_away(owner: &Owner) -> bool {
    owner
        .disconnected
        .is_some_and(|since| since >= DISCONNECTED_AFTER)
}

/// Returns whether both are of some pod of the same workload.
fn overlap(one: &Claim, other: &Claim) -> bool {
    let pods = match (&one.pod, &other.pod) {
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => true,
    };

    pods && one.workload == other.workload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(uid: &str, created: i64, user: &str) -> Claim {
        Claim {
            uid: uid.into(),
            created,
            user: user.into(),
            session: format!("session-of-{user}"),
            workload: Workload {
                namespace: "shop".into(),
                kind: "Deployment".into(),
                name: "web".into(),
            },
            ports: vec![8080],
            pod: None,
        }
    }

    fn connected(session: &str) -> Option<Owner> {
        let user = session.strip_prefix("session-of-")?;

        Some(Owner {
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
                Some(Owner {
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
            "before" => Some(Owner {
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
}

//! Who holds an intercepted port.
//!
//! Of two Intercepts of one port of one workload the older holds it: by the second in which it was
//! made, then by its UID, so that everybody who knows the same objects comes to the same answer.
//! An Intercept whose Session is gone, is somebody else's, or has been without a connection for too
//! long, holds nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Age of a Session's disconnection at which its Intercepts hold nothing any more, unless an
/// administrator chose another one.
pub const DISCONNECTED_AFTER: Duration = Duration::from_secs(600);

/// An Intercept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its UID.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Who made it: a text that is equal for one person alone.
    pub user: String,
    /// UID of the Session that it names.
    pub session: String,
    /// Whose traffic it is.
    pub workload: WorkloadKey,
    /// Ports of the containers.
    pub ports: Vec<u16>,
    /// The one pod that it is of; `None` for all.
    pub pod: Option<String>,
}

/// A workload of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Namespace of the workload.
    pub namespace: String,
    /// Such as `Deployment`.
    pub kind: String,
    /// Name of the workload.
    pub name: String,
}

/// A valid Session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// Its user, as in [`Claim::user`].
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

/// The standing of every claim, by UID. `claimant` knows the valid Sessions by their UIDs; one that has
/// been without a connection for `away_after` holds nothing.
pub fn standings<'a>(
    claims: impl IntoIterator<Item = &'a Claim>,
    claimant: impl Fn(&str) -> Option<Claimant>,
    away_after: Duration,
) -> BTreeMap<&'a str, Standing> {
    let mut standings = BTreeMap::new();
    let mut ranked = Vec::new();
    for claim in claims {
        match claimant(&claim.session).filter(|it| it.user == claim.user) {
            None => drop(standings.insert(claim.uid.as_str(), Standing::Orphan)),
            Some(claimant) => match claimant.disconnected {
                Some(since) if since >= away_after => {
                    standings.insert(&claim.uid, Standing::Away);
                }
                since => ranked.push((claim, since.is_some())),
            },
        }
    }
    ranked
        .sort_by(|(one, _), (other, _)| (one.created, &one.uid).cmp(&(other.created, &other.uid)));
    let successors = Successors::of(&ranked);
    let mut holders: BTreeMap<(&WorkloadKey, u16), Holders<'_>> = BTreeMap::new();
    for (rank, (claim, is_left)) in ranked.iter().enumerate() {
        let mut others = BTreeMap::new();
        let ports: BTreeSet<u16> = claim.ports.iter().copied().collect();
        for port in ports {
            let holding = holders.entry((&claim.workload, port)).or_default();
            let successor = || successors.after(rank, claim, port).filter(|_| *is_left);
            match holding.overlapping(claim).or_else(successor) {
                Some(holder) => drop(others.insert(port, holder.uid.clone())),
                None => holding.insert(claim),
            }
        }
        standings.insert(&claim.uid, Standing::Holds { others });
    }

    standings
}

/// The holders of one port of a workload. No two of them are of the same pod, so that one of all pods
/// is the only one.
#[derive(Default)]
struct Holders<'a> {
    oldest: Option<&'a Claim>,
    by_pod: BTreeMap<Option<&'a str>, &'a Claim>,
}

impl<'a> Holders<'a> {
    /// The oldest that is of some pod that the claim is of.
    fn overlapping(&self, claim: &Claim) -> Option<&'a Claim> {
        let Some(pod) = claim.pod.as_deref() else {
            return self.oldest;
        };
        let of_all = self.by_pod.get(&None);

        of_all.or_else(|| self.by_pod.get(&Some(pod))).copied()
    }

    fn insert(&mut self, claim: &'a Claim) {
        self.oldest.get_or_insert(claim);
        self.by_pod.insert(claim.pod.as_deref(), claim);
    }
}

/// The claims of connected Sessions, each with its rank by age. A user's own that are left from an
/// earlier connection yield to them.
struct Successors<'a> {
    by_place: BTreeMap<(&'a str, &'a WorkloadKey, u16), Ranked<'a>>,
}

/// Of one user's at one port of a workload: all of them, and by pod.
#[derive(Default)]
struct Ranked<'a> {
    all: Vec<(usize, &'a Claim)>,
    by_pod: BTreeMap<Option<&'a str>, Vec<(usize, &'a Claim)>>,
}

impl<'a> Successors<'a> {
    fn of(ranked: &[(&'a Claim, bool)]) -> Self {
        let mut by_place: BTreeMap<_, Ranked<'_>> = BTreeMap::new();
        let connected = ranked.iter().enumerate().filter(|(_, (_, left))| !left);
        for (rank, (claim, _)) in connected {
            for port in &claim.ports {
                let place = (claim.user.as_str(), &claim.workload, *port);
                let here = by_place.entry(place).or_default();
                here.all.push((rank, claim));
                let of_pod = here.by_pod.entry(claim.pod.as_deref()).or_default();
                of_pod.push((rank, claim));
            }
        }

        Self { by_place }
    }

    /// The oldest that is younger than `claim`, which has this rank, and of some pod that it is of.
    fn after(&self, rank: usize, claim: &Claim, port: u16) -> Option<&'a Claim> {
        let place = (claim.user.as_str(), &claim.workload, port);
        let here = self.by_place.get(&place)?;
        let first = |ranked: &[(usize, &'a Claim)]| {
            let older = ranked.partition_point(|(other, _)| *other <= rank);
            ranked.get(older).copied()
        };
        let Some(pod) = claim.pod.as_deref() else {
            return first(&here.all).map(|(_, claim)| claim);
        };
        let of_pods = [None, Some(pod)].into_iter();
        let found = of_pods.filter_map(|pod| first(here.by_pod.get(&pod)?));

        found.min_by_key(|(rank, _)| *rank).map(|(_, claim)| claim)
    }
}

/// Returns whether both are of some pod, where `None` is of all pods of the same workload.
pub fn share_a_pod(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => true,
    }
}

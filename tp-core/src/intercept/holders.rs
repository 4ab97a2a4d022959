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

/// The standing of every claim, by UID. `claimant` knows the valid Sessions by their UIDs.
pub fn standings<'a>(
    claims: impl IntoIterator<Item = &'a Claim>,
    claimant: impl Fn(&str) -> Option<Claimant>,
) -> BTreeMap<&'a str, Standing> {
    let mut standings = BTreeMap::new();
    let mut ranked = Vec::new();
    for claim in claims {
        match claimant(&claim.session).filter(|it| it.user == claim.user) {
            None => drop(standings.insert(claim.uid.as_str(), Standing::Orphan)),
            Some(claimant) if is_away(&claimant) => {
                standings.insert(&claim.uid, Standing::Away);
            }
            Some(claimant) => ranked.push((claim, claimant.disconnected.is_some())),
        }
    }
    ranked
        .sort_by(|(one, _), (other, _)| (one.created, &one.uid).cmp(&(other.created, &other.uid)));

    // Those that hold a port of a workload, in the order of their age.
    let mut holders: BTreeMap<(&WorkloadKey, u16), Vec<&Claim>> = BTreeMap::new();
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

fn is_away(claimant: &Claimant) -> bool {
    claimant
        .disconnected
        .is_some_and(|since| since >= DISCONNECTED_AFTER)
}

/// Returns whether both are of some pod of the same workload.
fn overlap(one: &Claim, other: &Claim) -> bool {
    share_a_pod(one.pod.as_deref(), other.pod.as_deref()) && one.workload == other.workload
}

/// Returns whether both are of some pod, where `None` is of all pods of the same workload.
pub fn share_a_pod(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => true,
    }
}

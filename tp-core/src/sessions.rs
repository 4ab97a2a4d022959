//! The sessions of one machine: which of them a socket belongs to, and what the maps of the data
//! path hold for that.
//!
//! A socket belongs to the scope of the task that connects or sends:
//!
//! 1. the innermost cgroup that has sessions of the task's user,
//! 2. else the task's user,
//! 3. else every user, if there is a session for that.
//!
//! A destination belongs to the session that was opened first among those of the task's scope that
//! steer it or serve a name server there; sessions of other scopes are not asked.
//! [`SessionRegistry::overlaps`] tells a session what it does not get.
//!
//! A destination that no session wants costs one look-up, however many sessions there are: it is no
//! *candidate* in the network namespace of the socket.
//!
//! ```
//! use tp_core::sessions::{SessionScope, SessionRegistry, NetworkChanges};
//!
//! let mut sessions = SessionRegistry::default();
//! let scope = SessionScope { netns: 1, cgroup: None, uid: Some(1000) };
//! let (first, _) = sessions.open(scope, vec!["241.2.0.0/16".parse()?])?;
//! let (second, _) = sessions.open(scope, vec!["243.8.0.0/16".parse()?])?;
//! for slot in [first, second] {
//!     let include = vec!["10.96.0.0/16".parse()?];
//!     sessions.steer(slot, &NetworkChanges { include, ..NetworkChanges::default() })?;
//! }
//!
//! assert_eq!(sessions.overlaps(second).networks, [("10.96.0.0/16".parse()?, first)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};

use crate::steering::{NEVER_STEERED, canonical};

mod changes;
mod overlaps;
mod scopes;
mod told;

pub use changes::{
    Candidate, Cgroup, MAX_CGROUP_LEVELS, MAX_NAME_SERVERS, MAX_NETWORKS, MAX_PER_SCOPE,
    MAX_SESSIONS, MAX_WANTED_NETWORKS, MapChange, NetworkChanges, NetworkRule, SessionScope,
    SessionsError, Slot,
};
pub use overlaps::Overlaps;
pub use told::ToldNetworks;

const ALL_OF_IPV4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

#[derive(Debug, Clone)]
struct Session {
    /// Larger is later.
    order: u64,
    scope: SessionScope,
    /// The networks of its aliases and of its link.
    own: Vec<IpNet>,
    networks: BTreeMap<IpNet, NetworkRule>,
    name_servers: BTreeSet<SocketAddr>,
}

/// The sessions of one machine.
#[derive(Debug, Clone, Default)]
pub struct SessionRegistry {
    sessions: BTreeMap<Slot, Session>,
    opened: u64,
    /// Closed, and not yet released.
    closing: BTreeSet<Slot>,
    /// By network namespace and network.
    claims: BTreeMap<(u64, IpNet), BTreeSet<Claim>>,
}

/// A session steers a network, or serves a name server there. The earliest session comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    order: u64,
    slot: Slot,
    reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Network,
    NameServer,
}

impl SessionRegistry {
    /// Takes a slot for a session that steers nothing yet. `own` are the networks of its aliases
    /// and of its link, which nobody steers.
    ///
    /// # Errors
    ///
    /// [`SessionsError`] if there is no room.
    pub fn open(
        &mut self,
        scope: SessionScope,
        own: Vec<IpNet>,
    ) -> Result<(Slot, Vec<MapChange>), SessionsError> {
        let slot = (0..MAX_SESSIONS as Slot)
            .find(|slot| !self.sessions.contains_key(slot) && !self.closing.contains(slot))
            .ok_or(SessionsError::TooManySessions)?;
        if self.of_scope(scope).len() >= MAX_PER_SCOPE {
            return Err(SessionsError::TooManyInScope);
        }
        let levels = self.cgroup_levels(scope);
        let level = scope.cgroup.map(|cgroup| cgroup.level);
        if level.is_some_and(|it| !levels.contains(&it)) && levels.len() >= MAX_CGROUP_LEVELS {
            return Err(SessionsError::TooManyLevels);
        }

        let own: Vec<IpNet> = own.iter().map(canonical).collect();
        self.opened += 1;
        let session = Session {
            order: self.opened,
            scope,
            own: own.clone(),
            networks: BTreeMap::new(),
            name_servers: BTreeSet::new(),
        };
        self.sessions.insert(slot, session);
        let mut changes: Vec<MapChange> = excluded_at_first()
            .map(|network| MapChange::Network(slot, network, Some(NetworkRule::Exclude)))
            .collect();
        changes.extend(self.candidates_within(scope.netns, &own));
        changes.extend(self.changed_levels(scope, &levels));
        changes.push(MapChange::Scope(scope, self.of_scope(scope)));

        Ok((slot, changes))
    }

    /// Ends the steering of a session. Once the changes are made, nothing in the maps leads to its
    /// slot, which stays taken until [`Self::release`].
    pub fn close(&mut self, slot: Slot) -> Vec<MapChange> {
        let Some(scope) = self.sessions.get(&slot).map(|session| session.scope) else {
            return Vec::new();
        };
        let levels = self.cgroup_levels(scope);
        let Some(session) = self.sessions.remove(&slot) else {
            return Vec::new();
        };
        self.closing.insert(slot);
        let mut changes = vec![MapChange::Scope(scope, self.of_scope(scope))];
        changes.extend(self.changed_levels(scope, &levels));
        for (network, rule) in &session.networks {
            if *rule == NetworkRule::Include {
                let claim = session.claim(slot, Reason::Network);
                changes.push(self.drop_claim(scope.netns, *network, claim));
            }
            changes.push(MapChange::Network(slot, *network, None));
        }
        for server in &session.name_servers {
            let claim = session.claim(slot, Reason::NameServer);
            changes.push(self.drop_claim(scope.netns, server.ip().into(), claim));
            changes.push(MapChange::NameServer(slot, *server, false));
        }
        changes.extend(self.candidates_within(scope.netns, &session.own));
        changes.extend(excluded_at_first().map(|network| MapChange::Network(slot, network, None)));

        changes
    }

    /// Gives the slot of a closed session back.
    pub fn release(&mut self, slot: Slot) {
        self.closing.remove(&slot);
    }

    /// Returns true if there is no session, and no slot to be released but these.
    pub fn is_empty_but_for(&self, slots: &BTreeSet<Slot>) -> bool {
        self.sessions.is_empty() && self.closing.is_subset(slots)
    }

    /// The networks of the aliases and links of all sessions, and those that sessions steer of whose user
    /// `of` is true.
    pub fn networks(&self, of: impl Fn(Option<u32>) -> bool) -> impl Iterator<Item = IpNet> {
        self.sessions.values().flat_map(move |session| {
            let is_avoided = of(session.scope.uid);
            let steered = session.included().filter(move |_| is_avoided);
            session.own.iter().chain(steered).copied()
        })
    }

    /// Changes the networks of a session; nothing includes what is [`NEVER_STEERED`]. While the changes
    /// are made, each destination goes from its old rule to its new one at once.
    ///
    /// # Errors
    ///
    /// [`SessionsError::TooManyNetworks`], after which nothing has changed.
    pub fn steer(
        &mut self,
        slot: Slot,
        changes: &NetworkChanges,
    ) -> Result<Vec<MapChange>, SessionsError> {
        let Some(session) = self.sessions.get(&slot) else {
            return Ok(Vec::new());
        };
        let mut wanted: BTreeMap<IpNet, Option<NetworkRule>> = BTreeMap::new();
        for (networks, rule) in [
            (&changes.remove, None),
            (&changes.include, Some(NetworkRule::Include)),
            (&changes.exclude, Some(NetworkRule::Exclude)),
        ] {
            wanted.extend(networks.iter().map(|network| (canonical(network), rule)));
        }
        wanted.retain(|network, rule| {
            session.networks.get(network) != rule.as_ref()
                && !NEVER_STEERED.iter().any(|never| never.contains(network))
        });
        let added = wanted
            .iter()
            .filter(|(network, rule)| rule.is_some() && !session.networks.contains_key(network));
        let removed = wanted.values().filter(|rule| rule.is_none()).count();
        if session.networks.len() + added.count() - removed > MAX_NETWORKS {
            return Err(SessionsError::TooManyNetworks);
        }

        // A destination changes with its longest prefix of the new ones, and with no other: the longest
        // come first, and of those that go the longest last.
        let (mut kept, mut gone): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(_, rule)| rule.is_some());
        kept.sort_by_key(|(network, _)| Reverse(network.prefix_len()));
        gone.sort_by_key(|(network, _)| network.prefix_len());

        Ok(kept
            .into_iter()
            .chain(gone)
            .flat_map(|(network, rule)| self.set_rule(slot, network, rule))
            .collect())
    }

    /// Replaces the name servers of a session.
    ///
    /// # Errors
    ///
    /// [`SessionsError::TooManyNameServers`], after which nothing has changed.
    pub fn set_name_servers(
        &mut self,
        slot: Slot,
        servers: &[SocketAddr],
    ) -> Result<Vec<MapChange>, SessionsError> {
        let wanted: BTreeSet<SocketAddr> = servers
            .iter()
            .map(|server| SocketAddr::new(server.ip().to_canonical(), server.port()))
            .collect();
        if wanted.len() > MAX_NAME_SERVERS {
            return Err(SessionsError::TooManyNameServers);
        }
        let Some(session) = self.sessions.get_mut(&slot) else {
            return Ok(Vec::new());
        };
        let had = mem::replace(&mut session.name_servers, wanted.clone());
        let (netns, claim) = (session.scope.netns, session.claim(slot, Reason::NameServer));

        let mut changes = Vec::new();
        for server in wanted.difference(&had) {
            changes.push(MapChange::NameServer(slot, *server, true));
            changes.push(self.add_claim(netns, server.ip().into(), claim));
        }
        for server in had.difference(&wanted) {
            // Another port of the same address may be served still.
            if !wanted.iter().any(|it| it.ip() == server.ip()) {
                changes.push(self.drop_claim(netns, server.ip().into(), claim));
            }
            changes.push(MapChange::NameServer(slot, *server, false));
        }

        Ok(changes)
    }

    fn set_rule(
        &mut self,
        slot: Slot,
        network: IpNet,
        rule: Option<NetworkRule>,
    ) -> Vec<MapChange> {
        let Some(session) = self.sessions.get_mut(&slot) else {
            return Vec::new();
        };
        match rule {
            Some(rule) => session.networks.insert(network, rule),
            None => session.networks.remove(&network),
        };
        let (netns, claim) = (session.scope.netns, session.claim(slot, Reason::Network));
        let candidate = match rule {
            Some(NetworkRule::Include) => self.add_claim(netns, network, claim),
            Some(NetworkRule::Exclude) | None => self.drop_claim(netns, network, claim),
        };

        let is_first = excluded_at_first().any(|it| it == network);
        let rule = rule.or(is_first.then_some(NetworkRule::Exclude));

        vec![MapChange::Network(slot, network, rule), candidate]
    }

    fn add_claim(&mut self, netns: u64, network: IpNet, claim: Claim) -> MapChange {
        self.claims
            .entry((netns, network))
            .or_default()
            .insert(claim);

        self.candidate(netns, network)
    }

    fn drop_claim(&mut self, netns: u64, network: IpNet, claim: Claim) -> MapChange {
        if let Entry::Occupied(mut claims) = self.claims.entry((netns, network)) {
            claims.get_mut().remove(&claim);
            if claims.get().is_empty() {
                claims.remove();
            }
        }

        self.candidate(netns, network)
    }

    fn candidate(&self, netns: u64, network: IpNet) -> MapChange {
        let mut own = self.of_netns(netns).flat_map(|session| &session.own);
        let mut first = self.claims.get(&(netns, network)).into_iter().flatten();
        let candidate = match own.find(|own| own.contains(&network)) {
            Some(own) if *own == network => Some(Candidate::Nobody),
            Some(_) => None,
            None => first.next().map(|claim| Candidate::Of(claim.slot)),
        };

        MapChange::Candidate(netns, network, candidate)
    }

    /// The candidates that depend on whether a session has these networks for its own.
    fn candidates_within(&self, netns: u64, own: &[IpNet]) -> Vec<MapChange> {
        let claimed = self
            .claims
            .keys()
            .filter(|(at, network)| *at == netns && own.iter().any(|own| own.contains(network)))
            .map(|(_, network)| network);

        own.iter()
            .chain(claimed)
            .map(|network| self.candidate(netns, *network))
            .collect()
    }
}

/// What a session leaves alone that says nothing of it. All of IPv4 is there because the maps have it
/// within IPv6, in its mapped form: a session that steers `::/0` has not asked for IPv4.
fn excluded_at_first() -> impl Iterator<Item = IpNet> {
    NEVER_STEERED.into_iter().chain([ALL_OF_IPV4])
}

impl Session {
    fn claim(&self, slot: Slot, reason: Reason) -> Claim {
        Claim {
            order: self.order,
            slot,
            reason,
        }
    }

    fn included(&self) -> impl Iterator<Item = &IpNet> {
        self.networks
            .iter()
            .filter(|(_, rule)| **rule == NetworkRule::Include)
            .map(|(network, _)| network)
    }

    /// Whether it steers sockets to an address.
    fn steers(&self, address: IpAddr) -> bool {
        self.rule_of(&IpNet::from(address)) == Some(NetworkRule::Include)
    }

    /// The rule of the longest prefix that contains all of a network.
    fn rule_of(&self, network: &IpNet) -> Option<NetworkRule> {
        (0..=network.prefix_len()).rev().find_map(|prefix_len| {
            let wider = IpNet::new_assert(network.addr(), prefix_len).trunc();
            self.networks.get(&wider).copied()
        })
    }

    /// Whether it answers queries to a server.
    fn has(&self, server: SocketAddr) -> bool {
        self.name_servers.contains(&server) || self.steers(server.ip())
    }
}

#[cfg(test)]
mod tests;

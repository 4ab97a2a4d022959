//! Which sessions share a scope, and at which depths cgroups are scopes.

use std::collections::BTreeSet;

use super::{MapChange, Session, SessionRegistry, SessionScope, Slot};

impl SessionRegistry {
    pub(super) fn of_netns(&self, netns: u64) -> impl Iterator<Item = &Session> {
        self.sessions
            .values()
            .filter(move |session| session.scope.netns == netns)
    }

    /// The sessions of a scope, the earliest first.
    pub(super) fn of_scope(&self, scope: SessionScope) -> Vec<Slot> {
        let mut slots: Vec<(u64, Slot)> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.scope == scope)
            .map(|(slot, session)| (session.order, *slot))
            .collect();
        slots.sort_unstable();

        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    pub(super) fn changed_levels(&self, scope: SessionScope, before: &[u32]) -> Option<MapChange> {
        let levels = self.cgroup_levels(scope);

        (levels != before).then_some(MapChange::CgroupLevels(
            SessionScope {
                cgroup: None,
                ..scope
            },
            levels,
        ))
    }

    /// Those of the scope's user, the deepest first. They are counted by user, so that nobody takes
    /// the room of others.
    pub(super) fn cgroup_levels(&self, scope: SessionScope) -> Vec<u32> {
        let cgroups = self
            .of_netns(scope.netns)
            .filter(|session| session.scope.uid == scope.uid)
            .filter_map(|session| session.scope.cgroup);
        let levels: BTreeSet<u32> = cgroups.map(|cgroup| cgroup.level).collect();

        levels.into_iter().rev().collect()
    }
}

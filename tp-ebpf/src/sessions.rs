//! Which session a socket, an alias or an interface belongs to. The rule is stated in
//! `tp-core/src/sessions.rs`.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie},
};
use tp_ebpf_common::{
    ADDRESS_BITS, Address, CandidateKey, Counter, MAX_CGROUP_LEVELS, MAX_PER_SCOPE, MAX_SESSIONS,
    NameServer, ScopeKey, ScopeSessions, SessionEntry, SteerAction, session_flags, unmapped,
};

use crate::{
    maps::{
        AlignedKey, CANDIDATES, CGROUP_LEVELS, INTERFACES, NAME_SERVERS, NETWORKS, RANGES, SCOPES,
        SESSIONS, setting,
    },
    owner::Task,
};

/// Containers are less deep.
const MAX_HIERARCHY_LEVEL: u32 = 32;

/// A live session.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) slot: u32,
    /// Read once: the root daemon clears it in the entry when the session ends. All else of the entry
    /// stays until no program runs that has seen the id.
    pub(crate) id: u32,
    pub(crate) session: &'static SessionEntry,
}

/// A destination, and what it is to a session: the values of the maps, 0 for none. Made into truth
/// values here, they would let the verifier walk all that follows once for each pair of them.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) open: Open,
    rule: u32,
    server: u32,
}

impl Found {
    #[inline(always)]
    pub(crate) fn is_network(&self) -> bool {
        self.rule == SteerAction::Include as u32
    }

    #[inline(always)]
    pub(crate) fn is_name_server(&self) -> bool {
        self.server != 0
    }
}

/// The destination of a socket, where some session wants it.
#[derive(Clone, Copy)]
pub(crate) struct SocketTarget {
    netns: u64,
    address: Address,
    port: [u8; 2],
    first: u32,
}

impl SocketTarget {
    /// `None` for all that no session steers in the network namespace of the socket.
    #[inline(always)]
    pub(crate) fn find(ctx: *mut bpf_sock_addr, address: Address, port: [u8; 2]) -> Option<Self> {
        // SAFETY: a live context.
        let netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
        let bits = CandidateKey::NETNS_BITS + ADDRESS_BITS;
        let key = AlignedKey::new(bits, CandidateKey { netns, address });
        let first = CANDIDATES.get(key.get())?;
        let first = *first;

        (first != CandidateKey::NOBODY).then_some(Self {
            netns,
            address,
            port,
            first,
        })
    }

    /// The session of the task's scope that steers the destination. An error is the reason why
    /// another one, at that slot, does not.
    #[inline(always)]
    pub(crate) fn session_of(&self, task: &Task) -> Result<Option<Found>, (u32, Counter)> {
        let Some((scope, cgroup)) = self.scope_of(task) else {
            return self.foreign(task);
        };
        let mut place = 0;
        while place < MAX_PER_SCOPE {
            if place as u32 >= scope.count {
                break;
            }
            if let Some(found) = self.at(scope.slots[place], cgroup) {
                return Ok(Some(found));
            }
            place += 1;
        }

        Ok(None)
    }

    /// The sessions of the task's scope, and its cgroup, which is 0 for all.
    #[inline(always)]
    fn scope_of(&self, task: &Task) -> Option<(&'static ScopeSessions, u64)> {
        let all = ScopeKey::new(self.netns, 0, task.uid);
        // SAFETY: an entry that changes meanwhile leads to a cgroup that has sessions, or to none.
        if let Some(levels) = unsafe { CGROUP_LEVELS.get(&all) }
            && let Some(root) = level_of_hierarchy()
        {
            let mut place = 0;
            while place < MAX_CGROUP_LEVELS {
                let level = levels[place];
                if level == 0 {
                    break;
                }
                // SAFETY: no preconditions.
                let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id((root + level) as i32) };
                if cgroup != 0
                    && let Some(scope) = sessions_of(self.netns, cgroup, task.uid)
                {
                    return Some((scope, cgroup));
                }
                place += 1;
            }
        }

        let scope = match sessions_of(self.netns, 0, task.uid) {
            Some(scope) => Some(scope),
            None => sessions_of(self.netns, 0, ScopeKey::EVERYBODY),
        };

        scope.map(|scope| (scope, 0))
    }

    #[inline(always)]
    fn foreign(&self, task: &Task) -> Result<Option<Found>, (u32, Counter)> {
        let Some(open) = open(self.first) else {
            return Ok(None);
        };
        if self.rule_of(open) != SteerAction::Include as u32 && self.server_of(open) == 0 {
            return Ok(None);
        }
        let session = open.session;
        let is_same_user = session.flags & session_flags::ONE_USER == 0 || session.uid == task.uid;
        let reason = if is_same_user {
            Counter::OtherCgroup
        } else {
            Counter::OtherUser
        };

        Err((self.first, reason))
    }

    /// What the destination is to the session at `slot`; `None` if it does not steer it. The kernel may
    /// give the memory of a scope that goes to another scope while it is read; then the session is of
    /// another one.
    #[inline(always)]
    fn at(&self, slot: u32, cgroup: u64) -> Option<Found> {
        let open = open(slot)?;
        if open.session.netns != self.netns || open.session.cgroup != cgroup {
            return None;
        }
        let found = Found {
            open,
            rule: self.rule_of(open),
            server: self.server_of(open),
        };

        (found.is_network() || found.is_name_server()).then_some(found)
    }

    /// The session's rule for the network of the destination: a [`SteerAction`], or 0.
    #[inline(always)]
    fn rule_of(&self, open: Open) -> u32 {
        let key = AlignedKey::new(ADDRESS_BITS, self.address);
        let rule = NETWORKS
            .get(open.slot)
            .and_then(|networks| networks.get(key.get()));

        rule.copied().unwrap_or(0)
    }

    /// Not 0 if the destination is a name server of the session.
    #[inline(always)]
    fn server_of(&self, open: Open) -> u32 {
        let server = NameServer::new(open.slot, self.address, self.port);
        // SAFETY: an entry that changes meanwhile is there all the same.
        let server = unsafe { NAME_SERVERS.get(&server) };

        server.copied().unwrap_or(0)
    }
}

/// The kernel's depth of the cgroup from which ours are counted: 0 but for a container's. `None` for a
/// task outside.
#[inline(always)]
fn level_of_hierarchy() -> Option<u32> {
    let mut level = 0;
    while level < MAX_HIERARCHY_LEVEL {
        // SAFETY: no preconditions.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if cgroup == setting!(hierarchy) {
            return Some(level);
        }
        level += 1;
    }

    None
}

/// The session that owns an alias, in either form.
#[inline(always)]
pub(crate) fn of_alias(alias: Address) -> Option<Open> {
    let mut range = alias;
    range[14] = 0;
    range[15] = 0;
    // SAFETY: a word; one that goes to another range meanwhile leads to another session.
    let slot = unsafe { RANGES.get(&range) }.copied()?;
    let open = open(slot)?;
    let is_its = match unmapped(range) {
        Some(base) => u32::from_be_bytes(base) == open.session.alias_base,
        None => u128::from_ne_bytes(range) == u128::from_ne_bytes(open.session.alias_base6),
    };

    is_its.then_some(open)
}

/// The session that an interface belongs to.
#[inline(always)]
pub(crate) fn of_interface(index: u32) -> Option<Open> {
    // SAFETY: as above.
    let slot = unsafe { INTERFACES.get(&index) }.copied()?;
    let open = open(slot)?;
    let session = open.session;
    let is_its =
        index == session.host_index || index == session.veth_index || index == session.tun_index;

    is_its.then_some(open)
}

/// The live session at a slot.
#[inline(always)]
pub(crate) fn open(slot: u32) -> Option<Open> {
    if slot >= MAX_SESSIONS as u32 {
        return None;
    }
    let session = SESSIONS.get(slot)?;
    // SAFETY: an aligned word of a live element.
    let id = unsafe { core::ptr::read_volatile(&raw const session.id) };

    (id != 0).then_some(Open { slot, id, session })
}

#[inline(always)]
fn sessions_of(netns: u64, cgroup: u64, uid: u32) -> Option<&'static ScopeSessions> {
    // SAFETY: an entry that changes meanwhile names sessions that are compared with the task.
    unsafe { SCOPES.get(&ScopeKey::new(netns, cgroup, uid)) }
}

//! What is asked of the sessions, what follows for the maps, and the bounds.

use std::net::SocketAddr;

use ipnet::IpNet;
use thiserror::Error;

/// The most sessions of a machine.
pub const MAX_SESSIONS: usize = 64;
/// The most sessions of a scope.
pub const MAX_PER_SCOPE: usize = 8;
/// The most depths, below the root of the hierarchy, of cgroups that have sessions of one user.
pub const MAX_CGROUP_LEVELS: usize = 8;
/// The most networks, included and excluded, that a session wants.
pub const MAX_WANTED_NETWORKS: usize = 16 * 1024;
/// The most networks that a session has: new ones come before old ones go.
pub const MAX_NETWORKS: usize = 2 * MAX_WANTED_NETWORKS;
/// The most name servers of a session.
pub const MAX_NAME_SERVERS: usize = 64;

/// The place of a session in the maps, below [`MAX_SESSIONS`].
pub type Slot = u32;

/// Whose sockets a session steers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionScope {
    /// The network namespace of the sockets, by its cookie.
    pub netns: u64,
    /// The cgroup in or below which the tasks are; all if `None`.
    pub cgroup: Option<Cgroup>,
    /// The user of the tasks; everybody if `None`.
    pub uid: Option<u32>,
}

/// A cgroup of the v2 hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// The number of its directory's inode.
    pub id: u64,
    /// Its depth below the root of the hierarchy, from 1.
    pub level: u32,
}

/// What a session does with the sockets to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkRule {
    /// It steers them.
    Include,
    /// It leaves them alone.
    Exclude,
}

/// A change of the networks of a session. The longest prefix decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkChanges {
    /// Networks to steer from now on.
    pub include: Vec<IpNet>,
    /// Networks to leave alone from now on, also if they are in `include`.
    pub exclude: Vec<IpNet>,
    /// Networks of which nothing is said any more, unless they are in `include` or `exclude`.
    pub remove: Vec<IpNet>,
}

/// One change of the maps. They are to be made in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapChange {
    /// What a session does with a network; `None` if nothing is said of it.
    Network(Slot, IpNet, Option<NetworkRule>),
    /// Whether a session serves a name server.
    NameServer(Slot, SocketAddr, bool),
    /// A network of which some session in this network namespace speaks, with the first of them.
    Candidate(u64, IpNet, Option<Candidate>),
    /// The sessions of a scope, the first to decide first; none if it has no session.
    Scope(SessionScope, Vec<Slot>),
    /// The depths of the cgroups that have sessions of a user, the deepest first; none if no cgroup
    /// has. The scope is the one of all tasks of the user.
    CgroupLevels(SessionScope, Vec<u32>),
}

/// Who may steer sockets to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    /// Some sessions; this one was opened first.
    Of(Slot),
    /// Nobody: the network consists of aliases.
    Nobody,
}

/// Why a session cannot have what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SessionsError {
    /// All slots are taken.
    #[error(
        "this machine has {MAX_SESSIONS} sessions, as many as there may be: one must end with `tp quit`"
    )]
    TooManySessions,
    /// The scope has no room.
    #[error(
        "you have {MAX_PER_SCOPE} sessions here, as many as one may have: end one with `tp quit`"
    )]
    TooManyInScope,
    /// The depth of the cgroup has no room.
    #[error(
        "the cgroups of this user's sessions have {MAX_CGROUP_LEVELS} different depths, as many as \
         may be"
    )]
    TooManyLevels,
    /// The session has no room.
    #[error("a session can have {MAX_NETWORKS} networks, and no more")]
    TooManyNetworks,
    /// The session has no room.
    #[error("a session can have {MAX_NAME_SERVERS} name servers, and no more")]
    TooManyNameServers,
}

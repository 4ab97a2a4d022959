//! The sessions that the programs steer for, and the keys by which one is found.

/// The number of elements of the maps that have one for each session.
pub const MAX_SESSIONS: usize = 64;
/// The most sessions that share a scope.
pub const MAX_PER_SCOPE: usize = 8;
/// The most depths of cgroups that are scopes.
pub const MAX_CGROUP_LEVELS: usize = 8;

/// Bits of [`SessionEntry::flags`].
pub mod session_flags {
    /// Only sockets of `SessionEntry::uid` without gained privileges.
    pub const ONE_USER: u32 = 1;
    /// UDP to steered networks is steered too, not only to name servers.
    pub const UDP: u32 = 2;
}

/// An element of the map `SESSIONS`. Numbers are in the machine's byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionEntry {
    /// Which no earlier session had; 0 while there is no session here.
    pub id: u32,
    /// Bits of [`session_flags`].
    pub flags: u32,
    /// The set of capabilities, one bit each, that the session itself has; a task with others is
    /// not steered.
    pub capabilities: u64,
    /// The network namespace whose sockets are steered, as SO_NETNS_COOKIE tells it.
    pub netns: u64,
    /// The cgroup in or below which the tasks are; 0 for all.
    pub cgroup: u64,
    /// The user whose tasks are steered, with [`session_flags::ONE_USER`], as the initial user
    /// namespace numbers it.
    pub uid: u32,
    /// The user namespace in which capabilities count, by the number of its file.
    pub user_ns: u32,
    /// The IPv4 alias with index 0, a multiple of 65536. In the machine's byte order, unlike
    /// addresses elsewhere: the programs add indices to it.
    pub alias_base: u32,
    /// The number of aliases: a power of two, at most 65536.
    pub alias_count: u32,
    /// The IPv6 alias with index 0, in network order; the index takes its last two bytes.
    pub alias_base6: [u8; 16],
    /// The index of the workstation's end of the veth.
    pub host_index: u32,
    /// The index of the inner end of the veth, in the private namespace.
    pub veth_index: u32,
    /// The index of the TUN, in the private namespace.
    pub tun_index: u32,
    #[doc(hidden)]
    pub _zero: u32,
}

/// The key of the map of scopes: whose tasks a socket is of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeKey {
    /// The network namespace of the socket, as SO_NETNS_COOKIE tells it.
    pub netns: u64,
    /// The cgroup in or below which the task is; 0 for all.
    pub cgroup: u64,
    /// The real uid of the task, or [`ScopeKey::EVERYBODY`].
    pub uid: u32,
    _zero: u32,
}

impl ScopeKey {
    /// No user has this number.
    pub const EVERYBODY: u32 = u32::MAX;

    /// The key of these three.
    pub const fn new(netns: u64, cgroup: u64, uid: u32) -> Self {
        Self {
            netns,
            cgroup,
            uid,
            _zero: 0,
        }
    }
}

/// The sessions of a scope, in the order in which they are asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopeSessions {
    /// Slots, from the front.
    pub slots: [u32; MAX_PER_SCOPE],
    /// How many there are.
    pub count: u32,
}

/// The mark of a socket: the ids of the last sessions that began to steer it, 0 where there is none. A
/// datagram socket may send to name servers of several.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// No id stands twice.
    pub sessions: [u32; 4],
}

const _: () = assert!(size_of::<SessionEntry>() == 80);
const _: () = assert!(size_of::<ScopeKey>() == 24);
const _: () = assert!(size_of::<ScopeSessions>() == 36);
const _: () = assert!(size_of::<Mark>() == 16);

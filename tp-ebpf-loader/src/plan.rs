//! The parameters of the programs: whose sockets are steered, and to which aliases.

use std::ffi::CStr;

use tp_ebpf_common::{KernelOffsets, ProcessName, Settings, scope};

/// The parameters of the programs. Sockets of one network namespace are steered: those of `user`, of
/// `cgroup`, of `user` in `cgroup` if both are given, all if neither is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The network namespace whose sockets are steered, as SO_NETNS_COOKIE returns it (Linux 5.14).
    pub netns_cookie: u64,
    /// The name of processes that are never steered, at most 15 bytes.
    pub exempt: &'static CStr,
    /// The user whose sockets are steered.
    pub user: Option<UserScope>,
    /// The cgroup whose sockets are steered.
    pub cgroup: Option<CgroupScope>,
    /// The first address of the aliases, a multiple of `alias_count`, in the machine's byte order:
    /// `u32::from` of an `Ipv4Addr`.
    pub alias_base: u32,
    /// The number of aliases: a power of two, at most 65536.
    pub alias_count: u32,
    /// The interfaces of the private namespace.
    pub interfaces: Interfaces,
    /// The result of [`crate::kernel_offsets`].
    pub offsets: KernelOffsets,
}

/// Sockets of one user's programs, but not of those that have gained privileges.
#[derive(Clone, Copy, Debug)]
pub struct UserScope {
    /// The user, as the initial user namespace numbers it.
    pub uid: u32,
    /// The set of permitted capabilities, one bit each, that the session has in `user_ns`.
    pub capabilities: u64,
    /// The inode number of the user namespace of the machine.
    pub user_ns: u32,
}

/// Sockets of programs in a cgroup or below it.
#[derive(Clone, Copy, Debug)]
pub struct CgroupScope {
    /// The id of the cgroup: the number of its directory's inode.
    pub id: u64,
    /// Depth below the root of the hierarchy.
    pub level: u32,
}

/// Indices of interfaces in the private namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interfaces {
    /// The inner end of the veth.
    pub veth: u32,
    /// The TUN.
    pub tun: u32,
}

impl Plan {
    pub(crate) fn settings(&self) -> Settings {
        let mut scope = 0;
        if self.user.is_some() {
            scope |= scope::USER;
        }
        if self.cgroup.is_some() {
            scope |= scope::CGROUP;
        }

        Settings {
            netns_cookie: self.netns_cookie,
            capabilities: self.user.map_or(0, |user| user.capabilities),
            cgroup_id: self.cgroup.map_or(0, |cgroup| cgroup.id),
            exempt: process_name(self.exempt),
            scope,
            uid: self.user.map_or(0, |user| user.uid),
            user_ns: self.user.map_or(0, |user| user.user_ns),
            cgroup_level: self.cgroup.map_or(0, |cgroup| cgroup.level),
            alias_base: self.alias_base,
            alias_mask: !(self.alias_count - 1),
            veth_index: self.interfaces.veth,
            tun_index: self.interfaces.tun,
            offsets: self.offsets,
        }
    }
}

/// The name as the kernel stores it: truncated, with a zero at the end.
fn process_name(name: &CStr) -> ProcessName {
    let mut padded = ProcessName::default();
    let len = name.count_bytes().min(padded.len() - 1);
    padded[..len].copy_from_slice(&name.to_bytes()[..len]);

    padded
}

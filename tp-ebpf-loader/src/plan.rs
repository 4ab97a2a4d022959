//! What a bundle is loaded for: whose sockets are steered, and to which aliases.

use std::ffi::CStr;

use tp_ebpf_common::{KernelOffsets, ProcessName, Settings, scope};

/// Whose sockets are steered. Both limits apply when both are given, none means everybody's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub netns_cookie: u64,
    /// The name of processes that are never steered.
    pub exempt: &'static CStr,
    pub user: Option<UserScope>,
    pub cgroup: Option<CgroupScope>,
    pub alias_base: u32,
    /// At most 65536, a power of two.
    pub alias_count: u32,
    pub interfaces: Interfaces,
    pub offsets: KernelOffsets,
}

#[derive(Clone, Copy, Debug)]
pub struct UserScope {
    pub uid: u32,
    /// Permitted capabilities of the session in `user_ns`.
    pub capabilities: u64,
    /// The user namespace of the machine, by the number of its file.
    pub user_ns: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct CgroupScope {
    pub id: u64,
    /// Depth below the root of the hierarchy.
    pub level: u32,
}

/// Indices in the private namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interfaces {
    pub veth: u32,
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

/// As the kernel keeps it: cut to what fits with a zero behind it.
fn process_name(name: &CStr) -> ProcessName {
    let mut padded = ProcessName::default();
    let len = name.count_bytes().min(padded.len() - 1);
    padded[..len].copy_from_slice(&name.to_bytes()[..len]);

    padded
}

//! What one bundle's programs are told when they are loaded; constant from then on.

/// Port 53 passes unsteered once the session's heartbeat is older than this.
pub const HEARTBEAT_LIMIT_NS: u64 = 2_000_000_000;

/// Bits of [`Settings::scope`].
pub mod scope {
    /// Only sockets of `Settings::uid` without gained privileges.
    pub const USER: u32 = 1;
    /// Only tasks below `Settings::cgroup_id`.
    pub const CGROUP: u32 = 2;
}

/// Where the running kernel keeps the credentials of a task, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CredentialOffsets {
    pub task_flags: u32,
    pub task_cred: u32,
    pub cred_uid: u32,
    pub cred_euid: u32,
    pub cred_fsuid: u32,
    pub cred_cap_permitted: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub netns_cookie: u64,
    /// Capabilities that the session itself has; a task with others is not steered.
    pub capabilities: u64,
    pub cgroup_id: u64,
    /// Thread groups that are never steered: the session and the root daemon.
    pub exempt: [u32; 2],
    pub scope: u32,
    pub uid: u32,
    pub cgroup_level: u32,
    /// In host order, unlike addresses elsewhere: the programs count upwards from it.
    pub alias_base: u32,
    pub alias_mask: u32,
    /// Network order.
    pub host_address: [u8; 4],
    pub veth_index: u32,
    pub tun_index: u32,
    pub offsets: CredentialOffsets,
}

const _: () = assert!(size_of::<CredentialOffsets>() == 24);
const _: () = assert!(size_of::<Settings>() == 88);

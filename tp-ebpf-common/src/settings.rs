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

/// The name of a process that is never steered, padded with zeros, as the kernel keeps it.
pub type ProcessName = [u8; 16];

/// Where the running kernel keeps what decides about a task or a socket, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    pub task_flags: u32,
    pub task_cred: u32,
    pub task_group_leader: u32,
    pub task_comm: u32,
    pub cred_uid: u32,
    pub cred_euid: u32,
    pub cred_suid: u32,
    pub cred_fsuid: u32,
    pub cred_gid: u32,
    pub cred_egid: u32,
    pub cred_sgid: u32,
    pub cred_fsgid: u32,
    pub cred_cap_permitted: u32,
    pub cred_user_ns: u32,
    pub user_ns_owner: u32,
    pub user_ns_inum: u32,
    /// Within the kernel's own form of a `bpf_sock_addr`.
    pub hook_socket: u32,
    pub hook_source: u32,
    /// From the source address of a datagram under way to its interface.
    pub source_to_interface: u32,
    /// Of an Internet socket: what IP_UNICAST_IF set.
    pub socket_unicast_interface: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub netns_cookie: u64,
    /// Capabilities that the session itself has; a task with others is not steered.
    pub capabilities: u64,
    pub cgroup_id: u64,
    /// Processes with this name are sessions and root daemons, whoever started them.
    pub exempt: ProcessName,
    pub scope: u32,
    pub uid: u32,
    /// The user namespace in which capabilities count, by the number of its file.
    pub user_ns: u32,
    pub cgroup_level: u32,
    /// In host order, unlike addresses elsewhere: the programs count upwards from it.
    pub alias_base: u32,
    pub alias_mask: u32,
    pub veth_index: u32,
    pub tun_index: u32,
    pub offsets: KernelOffsets,
}

const _: () = assert!(size_of::<KernelOffsets>() == 80);
const _: () = assert!(size_of::<Settings>() == 152);

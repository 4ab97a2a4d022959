//! The settings of one data path's programs, constant once they are loaded.

/// Port 53 passes unsteered once the session's heartbeat is older than this, in nanoseconds.
pub const HEARTBEAT_STALE_AFTER_NS: u64 = 2_000_000_000;

/// Bits of [`Settings::scope`].
pub mod scope {
    /// Only sockets of `Settings::uid` without gained privileges.
    pub const USER: u32 = 1;
    /// Only tasks below `Settings::cgroup_id`.
    pub const CGROUP: u32 = 2;
}

/// The name of a process that is never steered, padded with zeros, as the kernel keeps it.
pub type ProcessName = [u8; 16];

/// Offsets, in bytes, of the running kernel's fields of tasks and sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `flags` of `struct task_struct`.
    pub task_flags: u32,
    /// `cred` of `struct task_struct`.
    pub task_cred: u32,
    /// `group_leader` of `struct task_struct`.
    pub task_group_leader: u32,
    /// `comm` of `struct task_struct`.
    pub task_comm: u32,
    /// `uid` of `struct cred`.
    pub cred_uid: u32,
    /// `euid` of `struct cred`.
    pub cred_euid: u32,
    /// `suid` of `struct cred`.
    pub cred_suid: u32,
    /// `fsuid` of `struct cred`.
    pub cred_fsuid: u32,
    /// `gid` of `struct cred`.
    pub cred_gid: u32,
    /// `egid` of `struct cred`.
    pub cred_egid: u32,
    /// `sgid` of `struct cred`.
    pub cred_sgid: u32,
    /// `fsgid` of `struct cred`.
    pub cred_fsgid: u32,
    /// `cap_permitted` of `struct cred`.
    pub cred_cap_permitted: u32,
    /// `user_ns` of `struct cred`.
    pub cred_user_ns: u32,
    /// `owner` of `struct user_namespace`.
    pub user_ns_owner: u32,
    /// `ns.inum` of `struct user_namespace`.
    pub user_ns_inum: u32,
    /// `sk` of `struct bpf_sock_addr_kern`.
    pub hook_socket: u32,
    /// `t_ctx` of `struct bpf_sock_addr_kern`: the source address of a datagram under way.
    pub hook_source: u32,
    /// From `addr` to `oif` of `struct ipcm_cookie`: from the source address of a datagram under
    /// way to its interface.
    pub source_to_interface: u32,
    /// `uc_index` of `struct inet_sock`: what IP_UNICAST_IF set.
    pub socket_unicast_interface: u32,
}

/// The global `SETTINGS` of the programs. Numbers are in the machine's byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The network namespace whose sockets are steered, as SO_NETNS_COOKIE returns it.
    pub netns_cookie: u64,
    /// The set of capabilities, one bit each, that the session itself has; a task with others is
    /// not steered.
    pub capabilities: u64,
    /// The cgroup whose tasks are steered, with [`scope::CGROUP`].
    pub cgroup_id: u64,
    /// Processes with this name are sessions and root daemons, whoever started them.
    pub exempt: ProcessName,
    /// Bits of [`scope`].
    pub scope: u32,
    /// The user whose tasks are steered, with [`scope::USER`], as the initial user namespace
    /// numbers it.
    pub uid: u32,
    /// The inode number of the user namespace in which capabilities count.
    pub user_ns: u32,
    /// The depth of [`Settings::cgroup_id`] below the root of the hierarchy.
    pub cgroup_level: u32,
    /// The address of the alias with index 0. In the machine's byte order, unlike addresses
    /// elsewhere: the programs add indices to it.
    pub alias_base: u32,
    /// The netmask of the aliases, in the machine's byte order too.
    pub alias_mask: u32,
    /// The index of the inner end of the veth, in the private namespace.
    pub veth_index: u32,
    /// The index of the TUN, in the private namespace.
    pub tun_index: u32,
    /// The offsets of the kernel's fields that the programs read.
    pub offsets: KernelOffsets,
}

const _: () = assert!(size_of::<KernelOffsets>() == 80);
const _: () = assert!(size_of::<Settings>() == 152);

//! What the programs are told when they are loaded; constant from then on.

/// Port 53 passes unsteered once the session's heartbeat is older than this, in nanoseconds.
pub const HEARTBEAT_STALE_AFTER_NS: u64 = 2_000_000_000;

/// The name of a process that is never steered, padded with zeros, as the kernel keeps it: 16 bytes, in
/// words so that the programs compare words.
pub type ProcessName = [u64; 2];

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
    /// `sk_uid` of `struct sock`.
    pub socket_uid: u32,
    #[doc(hidden)]
    pub _zero: u32,
}

/// The global `SETTINGS` of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The cgroup from which depths of cgroups are counted, by the number of its inode. In a
    /// container it is not the kernel's root.
    pub hierarchy: u64,
    /// Processes with this name are sessions and root daemons, whoever started them.
    pub exempt: ProcessName,
    /// Where the kernel keeps what the programs read.
    pub offsets: KernelOffsets,
}

const _: () = assert!(size_of::<KernelOffsets>() == 88);
const _: () = assert!(size_of::<Settings>() == 112);

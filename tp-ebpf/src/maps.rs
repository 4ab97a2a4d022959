//! Maps and the settings, all of one bundle.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, Queue, SockMap},
};
use tp_ebpf_common::{ALIAS_TABLE_LEN, AliasUse, Counter, NameServer, Settings};

#[map]
pub(crate) static STEER4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(33792, 0);

/// Only for counting: IPv6 is not steered yet.
#[map]
pub(crate) static STEER6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(33792, 0);

#[map]
pub(crate) static NAME_SERVERS: HashMap<NameServer, u32> = HashMap::with_max_entries(64, 0);

/// Real address to the index of the alias in use for it.
#[map]
pub(crate) static ALIASES: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(ALIAS_TABLE_LEN as u32, BPF_F_NO_PREALLOC);

/// The same for aliases in quarantine.
#[map]
pub(crate) static RESTING: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(ALIAS_TABLE_LEN as u32, BPF_F_NO_PREALLOC);

/// Indices that may stand for another address.
#[map]
pub(crate) static FREE: Queue<u32> = Queue::with_max_entries(ALIAS_TABLE_LEN as u32, 0);

/// Alias index to real address: one value, so that its elements are four bytes apart when mapped into
/// memory.
#[map]
pub(crate) static ALIAS_TABLE: Array<[u32; ALIAS_TABLE_LEN]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static ALIAS_USES: Array<[AliasUse; ALIAS_TABLE_LEN]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static NEXT_ALIAS: Array<u64> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static HEARTBEAT: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(2, 0);

/// The marks of steered sockets. Only these see real addresses instead of aliases, may send to aliases
/// and receive from them. A mark lives as long as its socket, whatever happens to the descriptor, and
/// accepted sockets do not inherit it.
#[btf_map]
pub(crate) static STEERED: SkStorage<u32> = SkStorage::new();

#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings {
    netns_cookie: 0,
    capabilities: 0,
    cgroup_id: 0,
    exempt: [0; 16],
    scope: 0,
    uid: 0,
    user_ns: 0,
    cgroup_level: 0,
    alias_base: 0,
    alias_mask: 0,
    veth_index: 0,
    tun_index: 0,
    offsets: tp_ebpf_common::KernelOffsets {
        task_flags: 0,
        task_cred: 0,
        task_group_leader: 0,
        task_comm: 0,
        cred_uid: 0,
        cred_euid: 0,
        cred_suid: 0,
        cred_fsuid: 0,
        cred_gid: 0,
        cred_egid: 0,
        cred_sgid: 0,
        cred_fsgid: 0,
        cred_cap_permitted: 0,
        cred_user_ns: 0,
        user_ns_owner: 0,
        user_ns_inum: 0,
        hook_socket: 0,
        hook_source: 0,
        source_to_interface: 0,
        socket_unicast_interface: 0,
    },
};

/// Reads one field of the settings.
macro_rules! setting {
    ($($field:ident).+) => {
        crate::maps::constant(&crate::maps::SETTINGS.$($field).+)
    };
}
pub(crate) use setting;

/// Reads a value that the loader, not the compiler, sets.
#[inline(always)]
pub(crate) fn constant<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(field) }
}

#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's element; hooks may be preempted, a lost count is acceptable.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

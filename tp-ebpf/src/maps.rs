//! Maps and the settings. What belongs to one session alone is a map inside of an array of maps, at
//! the slot of the session.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{
        Array as BtfArray, ArrayOfMaps, HashMap as BtfHashMap, LpmTrie as BtfLpmTrie, Queue,
        SkStorage,
    },
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap, lpm_trie::Key},
};
use tp_ebpf_common::{
    ALIAS_TABLE_LEN, Address, AliasUse, CandidateKey, Counter, GuardKey, MAX_CGROUP_LEVELS,
    MAX_SESSIONS, Mark, NameServer, SOCKETS_PER_SESSION, ScopeKey, ScopeSessions, SessionEntry,
    Settings, ShownClient,
};

const SESSIONS_LEN: u32 = MAX_SESSIONS as u32;
/// Of one session: twice what it may have, since new ones come before old ones go.
const NETWORKS_LEN: usize = 33792;
const NAME_SERVERS_LEN: u32 = SESSIONS_LEN * 128;
const INTERFACES_LEN: u32 = SESSIONS_LEN * 3;
const RANGES_LEN: u32 = SESSIONS_LEN * 2;
const GUARDS_LEN: u32 = SESSIONS_LEN * 64;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Where some session may steer, to the slot of the first one.
#[map]
pub(crate) static CANDIDATES: LpmTrie<CandidateKey, u32> =
    LpmTrie::with_max_entries(SESSIONS_LEN * NETWORKS_LEN as u32, 0);

#[map]
pub(crate) static SCOPES: HashMap<ScopeKey, ScopeSessions> =
    HashMap::with_max_entries(SESSIONS_LEN, 0);

/// Depths of the cgroups that are scopes of a user, the deepest first; 0 behind the last. The key is
/// the scope of all tasks of the user.
#[map]
pub(crate) static CGROUP_LEVELS: HashMap<ScopeKey, [u32; MAX_CGROUP_LEVELS]> =
    HashMap::with_max_entries(SESSIONS_LEN, 0);

#[map]
pub(crate) static SESSIONS: Array<SessionEntry> = Array::with_max_entries(SESSIONS_LEN, 0);

/// Networks of each session, to what it does with them.
#[btf_map]
pub(crate) static NETWORKS: ArrayOfMaps<BtfLpmTrie<Address, u32, NETWORKS_LEN>, MAX_SESSIONS> =
    ArrayOfMaps::new();

#[map]
pub(crate) static NAME_SERVERS: HashMap<NameServer, u32> =
    HashMap::with_max_entries(NAME_SERVERS_LEN, BPF_F_NO_PREALLOC);

type Indices = BtfHashMap<Address, u32, ALIAS_TABLE_LEN, NO_PREALLOC>;

/// Real address to the index of the alias in use for it.
#[btf_map]
pub(crate) static ALIASES: ArrayOfMaps<Indices, MAX_SESSIONS> = ArrayOfMaps::new();

/// The same for aliases in quarantine.
#[btf_map]
pub(crate) static RESTING: ArrayOfMaps<Indices, MAX_SESSIONS> = ArrayOfMaps::new();

/// Indices that may stand for another address.
#[btf_map]
pub(crate) static FREE: ArrayOfMaps<Queue<u32, ALIAS_TABLE_LEN>, MAX_SESSIONS> = ArrayOfMaps::new();

/// Alias index to real address.
#[btf_map]
pub(crate) static ALIAS_TABLES: ArrayOfMaps<
    BtfArray<Address, ALIAS_TABLE_LEN, MMAPABLE>,
    MAX_SESSIONS,
> = ArrayOfMaps::new();

/// An [`AliasUse`] in the form of an array: Linux before 6.2 takes a map whose values have a struct as
/// their type for another kind of map than one that has no types, as the loader makes it.
pub(crate) type AliasUseWords = [u32; 2];

const _: () = assert!(size_of::<AliasUseWords>() == size_of::<AliasUse>());

#[btf_map]
pub(crate) static ALIAS_USES: ArrayOfMaps<
    BtfArray<AliasUseWords, ALIAS_TABLE_LEN, MMAPABLE>,
    MAX_SESSIONS,
> = ArrayOfMaps::new();

/// The number of fresh aliases that were taken.
#[btf_map]
pub(crate) static NEXT_ALIAS: ArrayOfMaps<BtfArray<u64, 1>, MAX_SESSIONS> = ArrayOfMaps::new();

/// The networks of aliases, whose last two bytes are 0, to slots.
#[map]
pub(crate) static RANGES: HashMap<Address, u32> = HashMap::with_max_entries(RANGES_LEN, 0);

#[btf_map]
pub(crate) static HEARTBEATS: ArrayOfMaps<BtfArray<u64, 1, MMAPABLE>, MAX_SESSIONS> =
    ArrayOfMaps::new();

/// Interfaces of the data paths to slots; no two have the same index in any network namespace.
#[map]
pub(crate) static INTERFACES: HashMap<u32, u32> = HashMap::with_max_entries(INTERFACES_LEN, 0);

#[map]
pub(crate) static GUARDS: LpmTrie<GuardKey, u32> = LpmTrie::with_max_entries(GUARDS_LEN, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(SESSIONS_LEN * Counter::COUNT, 0);

#[map]
pub(crate) static SOCKETS: SockMap =
    SockMap::with_max_entries(SESSIONS_LEN * SOCKETS_PER_SESSION, 0);

/// The marks of steered sockets. Only these see real addresses instead of aliases, may send to aliases
/// and receive from them. A mark lives as long as its socket, whatever happens to the descriptor, and
/// accepted sockets do not inherit it.
#[btf_map]
pub(crate) static STEERED: SkStorage<Mark> = SkStorage::new();

/// The clients that sockets of sessions stand for, put there by the root daemon before they connect.
#[btf_map]
pub(crate) static CLIENTS: SkStorage<ShownClient> = SkStorage::new();

#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings {
    hierarchy: 0,
    exempt: [0; 2],
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
        socket_uid: 0,
        _zero: 0,
    },
};

/// A key of an LPM trie whose data begin at a multiple of eight bytes. The kernel reads them by words of
/// eight bytes, and processors are slow to read a word that was just written in parts.
#[repr(C, align(8))]
pub(crate) struct AlignedKey<K> {
    _unused: u32,
    key: Key<K>,
}

impl<K> AlignedKey<K> {
    #[inline(always)]
    pub(crate) const fn new(prefix_len: u32, data: K) -> Self {
        Self {
            _unused: 0,
            key: Key::new(prefix_len, data),
        }
    }

    #[inline(always)]
    pub(crate) const fn get(&self) -> &Key<K> {
        &self.key
    }
}

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

/// Counts an event of the session at `slot`.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(slot * Counter::COUNT + counter as u32) {
        // SAFETY: this CPU's element; hooks may be preempted, a lost count is acceptable.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

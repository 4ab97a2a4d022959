//! What belongs to one session: its entry among the sessions, and the maps that nobody shares with
//! it.

use std::os::fd::OwnedFd;

use aya::maps::{LpmTrie, Map, MapData, lpm_trie::Key};
use aya_obj::generated::bpf_map_type;
use ipnet::IpNet;
use tp_ebpf_common::{
    ALIAS_TABLE_LEN, Address, AliasUse, SessionEntry, SteerAction, session_flags,
};

use crate::{
    MapError,
    aliases::{AliasBlock, AliasMaps, Aliases},
    fds,
    map::{
        ALIAS_TABLES, ALIAS_USES, ALIASES, FREE, HEARTBEATS, NETWORKS, NEXT_ALIAS, RESTING, broken,
        copy, gone, prefix,
    },
    slots::SlotMaps,
};

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// As the programs declare it.
const NETWORKS_LEN: u32 = 33792;
const TABLE_LEN: u32 = ALIAS_TABLE_LEN as u32;

/// What the programs know of a session, beside its networks and name servers.
#[derive(Clone, Copy, Debug)]
pub struct SessionPlan {
    /// Which no earlier session had; not 0.
    pub id: u32,
    /// The network namespace whose sockets are steered, as SO_NETNS_COOKIE tells it (Linux 5.14).
    pub netns: u64,
    /// The cgroup in or below which the tasks are: the number of its directory's inode.
    pub cgroup: Option<u64>,
    /// The only user whose sockets are steered; everybody's are without one.
    pub user: Option<UserScope>,
    /// UDP to steered networks is steered too, not only to name servers.
    pub udp: bool,
    /// The addresses that sockets receive.
    pub aliases: AliasBlock,
    /// The interfaces of the session.
    pub interfaces: Interfaces,
}

/// The sockets of one user's programs, but not of those that have gained privileges.
#[derive(Clone, Copy, Debug)]
pub struct UserScope {
    /// The user, as the initial user namespace numbers it.
    pub uid: u32,
    /// The set of permitted capabilities, one bit each, that the session has in `user_ns`.
    pub capabilities: u64,
    /// The user namespace of the machine, by the number of its file.
    pub user_ns: u32,
}

/// Indices of interfaces, which no two interfaces of any two sessions share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The workstation's end of the veth.
    pub host: u32,
    /// The inner end of the veth, in the private namespace.
    pub veth: u32,
    /// The TUN, in the private namespace.
    pub tun: u32,
}

impl Interfaces {
    pub(crate) fn all(&self) -> [u32; 3] {
        [self.host, self.veth, self.tun]
    }
}

impl SessionPlan {
    pub(crate) fn entry(&self) -> SessionEntry {
        let mut flags = 0;
        if self.user.is_some() {
            flags |= session_flags::ONE_USER;
        }
        if self.udp {
            flags |= session_flags::UDP;
        }

        SessionEntry {
            id: self.id,
            flags,
            capabilities: self.user.map_or(0, |user| user.capabilities),
            netns: self.netns,
            cgroup: self.cgroup.unwrap_or(0),
            uid: self.user.map_or(0, |user| user.uid),
            user_ns: self.user.map_or(0, |user| user.user_ns),
            alias_base: self.aliases.base4,
            alias_count: self.aliases.count,
            alias_base6: self.aliases.base6.octets(),
            host_index: self.interfaces.host,
            veth_index: self.interfaces.veth,
            tun_index: self.interfaces.tun,
            _zero: 0,
        }
    }
}

/// The maps of one session alone.
pub struct SessionMaps {
    networks: LpmTrie<MapData, Address, u32>,
    heartbeat: MapData,
    aliases: AliasMaps,
    slot: SlotMaps,
}

/// The networks of a session, by their longest prefix.
pub struct Networks(LpmTrie<MapData, Address, u32>);

impl SessionMaps {
    /// Makes empty maps, which no program knows yet.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn create() -> Result<Self, MapError> {
        let index = size_of::<u32>();
        let address = size_of::<Address>();
        let networks = create(
            NETWORKS,
            Kind::LpmTrie,
            (index + address, index),
            NETWORKS_LEN,
        )?;
        let in_use = create(ALIASES, Kind::Hash, (address, index), TABLE_LEN)?;
        let resting = create(RESTING, Kind::Hash, (address, index), TABLE_LEN)?;
        let free = create(FREE, Kind::Queue, (0, index), TABLE_LEN)?;
        let next = create(NEXT_ALIAS, Kind::Array, (index, size_of::<u64>()), 1)?;
        let table = create(ALIAS_TABLES, Kind::Mappable, (index, address), TABLE_LEN)?;
        let use_len = size_of::<AliasUse>();
        let uses = create(ALIAS_USES, Kind::Mappable, (index, use_len), TABLE_LEN)?;
        let heartbeat = create(HEARTBEATS, Kind::Mappable, (index, size_of::<u64>()), 1)?;
        // A descriptor without the right to write could not be mapped at all.
        fds::freeze(table.fd()).map_err(|source| MapError::Descriptor {
            name: ALIAS_TABLES,
            source,
        })?;

        Ok(Self {
            slot: SlotMaps([
                copy(NETWORKS, &networks)?,
                copy(ALIASES, &in_use)?,
                copy(RESTING, &resting)?,
                copy(FREE, &free)?,
                copy(NEXT_ALIAS, &next)?,
                copy(ALIAS_TABLES, &table)?,
                copy(ALIAS_USES, &uses)?,
                copy(HEARTBEATS, &heartbeat)?,
            ]),
            networks: Map::LpmTrie(networks)
                .try_into()
                .map_err(broken(NETWORKS))?,
            heartbeat,
            aliases: AliasMaps {
                in_use: Map::HashMap(in_use).try_into().map_err(broken(ALIASES))?,
                resting: Map::HashMap(resting).try_into().map_err(broken(RESTING))?,
                free: Map::Queue(free).try_into().map_err(broken(FREE))?,
                next: Map::Array(next).try_into().map_err(broken(NEXT_ALIAS))?,
                table,
                uses,
            },
        })
    }

    /// Takes apart what is used at different times.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn into_parts(self, block: AliasBlock) -> Result<(SlotMaps, Networks, Aliases), MapError> {
        let aliases = Aliases::new(self.aliases, block)?;

        Ok((self.slot, Networks(self.networks), aliases))
    }

    /// A descriptor of the alias table, to be mapped shared for reading (Linux 5.5); it is frozen
    /// (Linux 5.2) and cannot be mapped for writing.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn alias_table_fd(&self) -> Result<OwnedFd, MapError> {
        copy(ALIAS_TABLES, &self.aliases.table)
    }

    /// A descriptor of the heartbeat, to be mapped shared for writing (Linux 5.5).
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn heartbeat_fd(&self) -> Result<OwnedFd, MapError> {
        copy(HEARTBEATS, &self.heartbeat)
    }

    /// The ids of the maps of which other processes receive a descriptor; see
    /// [`crate::is_map_alive`].
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn shared_ids(&self) -> Result<[u32; 2], MapError> {
        let id = |name, map: &MapData| Ok(map.info().map_err(broken(name))?.id());

        Ok([
            id(ALIAS_TABLES, &self.aliases.table)?,
            id(HEARTBEATS, &self.heartbeat)?,
        ])
    }
}

impl Networks {
    /// Sets whether the session steers a network (`Some(true)`), leaves it alone (`Some(false)`),
    /// or says nothing of it.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set(&mut self, network: IpNet, is_steered: Option<bool>) -> Result<(), MapError> {
        let (address, prefix_len) = prefix(network);
        let key = Key::new(prefix_len, address);
        let changed = match is_steered {
            Some(true) => self.0.insert(&key, SteerAction::Include as u32, 0),
            Some(false) => self.0.insert(&key, SteerAction::Exclude as u32, 0),
            None => gone(self.0.remove(&key)),
        };

        changed.map_err(broken(NETWORKS))
    }
}

/// The kinds of maps that a session has.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    LpmTrie,
    Hash,
    Queue,
    Array,
    /// An array to be mapped into memory. Its elements are a multiple of eight bytes, so they lie side
    /// by side.
    Mappable,
}

impl Kind {
    fn map_type(self) -> bpf_map_type {
        match self {
            Self::LpmTrie => bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
            Self::Hash => bpf_map_type::BPF_MAP_TYPE_HASH,
            Self::Queue => bpf_map_type::BPF_MAP_TYPE_QUEUE,
            Self::Array | Self::Mappable => bpf_map_type::BPF_MAP_TYPE_ARRAY,
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::LpmTrie | Self::Hash => BPF_F_NO_PREALLOC,
            Self::Queue | Self::Array => 0,
            Self::Mappable => BPF_F_MMAPABLE,
        }
    }
}

/// Makes a map whose keys and values have these sizes in bytes.
fn create(
    name: &'static str,
    kind: Kind,
    (key, value): (usize, usize),
    len: u32,
) -> Result<MapData, MapError> {
    debug_assert!(kind != Kind::Mappable || value.is_multiple_of(8));
    let map = aya_obj::Map::new_from_params(
        kind.map_type() as u32,
        key as u32,
        value as u32,
        len,
        kind.flags(),
    );

    MapData::create(map, name, None).map_err(broken(name))
}

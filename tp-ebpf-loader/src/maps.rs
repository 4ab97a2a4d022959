//! The maps of one data path.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use aya::{
    Ebpf, Pod,
    maps::{
        HashMap, LpmTrie, Map, MapData, MapError as AyaError, MapInfo, PerCpuArray, SockMap,
        lpm_trie::Key,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tp_ebpf_common::{Counter, NameServer, SteerAction};

use crate::{
    MapError, Plan,
    aliases::Aliases,
    fds,
    map::{array, broken, copy, take, typed},
};

const STEER4: &str = "STEER4";
const STEER6: &str = "STEER6";
const NAME_SERVERS: &str = "NAME_SERVERS";
const ALIAS_TABLE: &str = "ALIAS_TABLE";
const HEARTBEAT: &str = "HEARTBEAT";
const COUNTERS: &str = "COUNTERS";
const LISTENERS: &str = "LISTENERS";

/// At most half of the capacity of the programs' maps: new entries are added before old ones are
/// removed. Includes [`NEVER_STEERED`].
const MAX_NETWORKS: usize = 16 * 1024 + NEVER_STEERED.len();

/// Networks that are never steered, whatever a session asks for: "this network", loopback, link-local,
/// multicast and broadcast. Not 240.0.0.0/4, which some clouds give to pods.
pub const NEVER_STEERED: [IpNet; 8] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 127),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4([a, b, c, d]: [u8; 4], prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix_len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        prefix_len,
    ))
}

const MAX_NAME_SERVERS: usize = 64;

/// A counter and its sum over all processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterValue {
    /// The counted event.
    pub counter: Counter,
    /// Events since the programs were loaded.
    pub value: u64,
}

/// The maps of one data path that user space changes or reads.
pub struct Maps {
    steer4: LpmTrie<MapData, [u8; 4], u32>,
    steer6: LpmTrie<MapData, [u8; 16], u32>,
    /// The contents of the tries.
    steered4: Networks<[u8; 4]>,
    steered6: Networks<[u8; 16]>,
    name_servers: HashMap<MapData, NameServer, u32>,
    counters: PerCpuArray<MapData, u64>,
    listeners: SockMap<MapData>,
    alias_table: Map,
    heartbeat: Map,
    aliases: Option<Aliases>,
}

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf, plan: &Plan) -> Result<Self, MapError> {
        let alias_table = take(ebpf, ALIAS_TABLE)?;
        // Frozen, because a read-only descriptor could not be mapped at all.
        fds::freeze(array(ALIAS_TABLE, &alias_table)?.fd()).map_err(|source| {
            MapError::Descriptor {
                name: ALIAS_TABLE,
                source,
            }
        })?;

        Ok(Self {
            steer4: typed(ebpf, STEER4)?,
            steer6: typed(ebpf, STEER6)?,
            steered4: Networks::new(),
            steered6: Networks::new(),
            name_servers: typed(ebpf, NAME_SERVERS)?,
            counters: typed(ebpf, COUNTERS)?,
            listeners: typed(ebpf, LISTENERS)?,
            aliases: Some(Aliases::take(ebpf, &alias_table, plan)?),
            alias_table,
            heartbeat: take(ebpf, HEARTBEAT)?,
        })
    }

    /// Replaces the steered networks. The longest prefix wins; on a tie `exclude` does, and
    /// nothing includes what is [`NEVER_STEERED`]. While it runs, a destination meets the old or
    /// the new entry; if there are both, it always meets one.
    ///
    /// # Errors
    ///
    /// [`MapError::TooMany`] for more than 16384 networks of a family, and those of bpf(2), after
    /// which a part may have been replaced.
    pub fn steer(&mut self, include: &[IpNet], exclude: &[IpNet]) -> Result<(), MapError> {
        let mut wanted4 = BTreeMap::new();
        let mut wanted6 = BTreeMap::new();
        let is_local = |network: &IpNet| NEVER_STEERED.iter().any(|local| local.contains(network));
        let include = include.iter().filter(|network| !is_local(network));
        let exclude = exclude.iter().chain(&NEVER_STEERED);
        let actions = include
            .map(|network| (network, SteerAction::Include))
            .chain(exclude.map(|network| (network, SteerAction::Exclude)));
        for (network, action) in actions {
            match network.trunc() {
                IpNet::V4(n) => {
                    let key = (u32::from(n.prefix_len()), n.addr().octets());
                    wanted4.insert(key, action as u32);
                }
                IpNet::V6(n) => {
                    let key = (u32::from(n.prefix_len()), n.addr().octets());
                    wanted6.insert(key, action as u32);
                }
            }
        }
        fits(STEER4, wanted4.len(), MAX_NETWORKS)?;
        fits(STEER6, wanted6.len(), MAX_NETWORKS)?;

        replace(&mut self.steer4, &mut self.steered4, &wanted4).map_err(broken(STEER4))?;
        replace(&mut self.steer6, &mut self.steered6, &wanted6).map_err(broken(STEER6))
    }

    /// Replaces the name servers whose port is steered.
    ///
    /// # Errors
    ///
    /// [`MapError::TooMany`] for more than 64, and those of bpf(2), after which a part may have
    /// been replaced.
    pub fn set_name_servers(&mut self, servers: &[SocketAddr]) -> Result<(), MapError> {
        let wanted: Vec<NameServer> = servers.iter().map(name_server).collect();
        fits(NAME_SERVERS, wanted.len(), MAX_NAME_SERVERS)?;

        let have: Vec<NameServer> = self
            .name_servers
            .keys()
            .collect::<Result<_, _>>()
            .map_err(broken(NAME_SERVERS))?;
        for old in have.iter().filter(|server| !wanted.contains(server)) {
            self.name_servers
                .remove(old)
                .map_err(broken(NAME_SERVERS))?;
        }
        for new in &wanted {
            self.name_servers
                .insert(new, 1, 0)
                .map_err(broken(NAME_SERVERS))?;
        }

        Ok(())
    }

    /// All counters, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn counters(&self) -> Result<Vec<CounterValue>, MapError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self
                    .counters
                    .get(&(*counter as u32), 0)
                    .map_err(broken(COUNTERS))?;
                Ok(CounterValue {
                    counter: *counter,
                    value: values.iter().sum(),
                })
            })
            .collect()
    }

    /// The ids of the maps whose descriptors other processes receive; see [`is_map_alive`].
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn shared_ids(&self) -> Result<[u32; 2], MapError> {
        let id = |name, map| {
            let info = array(name, map)?.info().map_err(broken(name))?;
            Ok(info.id())
        };

        Ok([
            id(ALIAS_TABLE, &self.alias_table)?,
            id(HEARTBEAT, &self.heartbeat)?,
        ])
    }

    /// Takes the maps of the aliases out; `None` the second time.
    pub fn take_aliases(&mut self) -> Option<Aliases> {
        self.aliases.take()
    }

    /// A descriptor of the alias table, to be mapped shared for reading (Linux 5.5); it is frozen
    /// (Linux 5.2) and cannot be mapped for writing.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn alias_table_fd(&self) -> Result<OwnedFd, MapError> {
        copy(ALIAS_TABLE, &self.alias_table)
    }

    /// A descriptor of the heartbeat, to be mapped shared for writing (Linux 5.5).
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn heartbeat_fd(&self) -> Result<OwnedFd, MapError> {
        copy(HEARTBEAT, &self.heartbeat)
    }

    pub(crate) fn set_listener(
        &mut self,
        slot: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), MapError> {
        let socket: RawFd = socket.as_raw_fd();

        self.listeners
            .set(slot, &socket, 0)
            .map_err(broken(LISTENERS))
    }
}

/// Actions by prefix length and address.
type Networks<K> = BTreeMap<(u32, K), u32>;

/// Changes the trie from `have` to `wanted`, by the differences alone; adds and changes entries before
/// it removes any.
fn replace<K: Pod + Ord>(
    trie: &mut LpmTrie<MapData, K, u32>,
    have: &mut Networks<K>,
    wanted: &Networks<K>,
) -> Result<(), AyaError> {
    for (key, action) in wanted {
        if have.get(key) != Some(action) {
            trie.insert(&Key::new(key.0, key.1), action, 0)?;
            have.insert(*key, *action);
        }
    }
    let surplus: Vec<(u32, K)> = have
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .copied()
        .collect();
    for key in surplus {
        trie.remove(&Key::new(key.0, key.1))?;
        have.remove(&key);
    }

    Ok(())
}

/// Returns whether a process or a program still has the map with this id.
pub fn is_map_alive(id: u32) -> bool {
    MapInfo::from_id(id).is_ok()
}

fn name_server(server: &SocketAddr) -> NameServer {
    let port = server.port().to_be_bytes();
    match server {
        SocketAddr::V4(v4) => NameServer::v4(v4.ip().octets(), port),
        SocketAddr::V6(v6) => NameServer::new(v6.ip().octets(), port),
    }
}

fn fits(name: &'static str, count: usize, limit: usize) -> Result<(), MapError> {
    if count > limit {
        return Err(MapError::TooMany { name, count, limit });
    }

    Ok(())
}

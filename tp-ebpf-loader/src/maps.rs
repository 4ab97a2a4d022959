//! The maps that all sessions share.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, MapData, MapError as AyaError, MapInfo, PerCpuArray, PerCpuValues,
        SkStorage, SockMap, lpm_trie::Key,
    },
    util::nr_cpus,
};
use ipnet::IpNet;
use tp_ebpf_common::{
    Address, CandidateKey, Counter, Direction, GuardKey, GuardRule, LISTENER, MAX_CGROUP_LEVELS,
    MAX_PER_SCOPE, NameServer, SOCKETS_PER_SESSION, ScopeKey, ScopeSessions, SessionEntry,
    ShownClient, UDP_SOCKET,
};

use crate::{
    MapError, SessionPlan,
    map::{address, broken, gone, prefix, typed},
    slots::{Arrays, Slots},
};

const CANDIDATES: &str = "CANDIDATES";
const SCOPES: &str = "SCOPES";
const CGROUP_LEVELS: &str = "CGROUP_LEVELS";
const SESSIONS: &str = "SESSIONS";
const NAME_SERVERS: &str = "NAME_SERVERS";
const RANGES: &str = "RANGES";
const INTERFACES: &str = "INTERFACES";
const GUARDS: &str = "GUARDS";
const COUNTERS: &str = "COUNTERS";
const SOCKETS: &str = "SOCKETS";
const CLIENTS: &str = "CLIENTS";

/// A counter and its sum over all processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterValue {
    /// The counted event.
    pub counter: Counter,
    /// Events of the session since it was opened.
    pub value: u64,
}

/// The key of a scope: whose sockets the sessions of the scope steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeTask {
    /// The network namespace of the sockets, as SO_NETNS_COOKIE tells it (Linux 5.14).
    pub netns: u64,
    /// The cgroup in or below which the tasks are: the number of its directory's inode.
    pub cgroup: Option<u64>,
    /// The user of the tasks; everybody's without one.
    pub uid: Option<u32>,
}

impl ScopeTask {
    fn key(self) -> ScopeKey {
        let uid = self.uid.unwrap_or(ScopeKey::EVERYBODY);

        ScopeKey::new(self.netns, self.cgroup.unwrap_or(0), uid)
    }
}

/// The maps that all sessions share. A session is known by its slot, below 64.
pub struct Maps {
    candidates: LpmTrie<MapData, CandidateKey, u32>,
    scopes: HashMap<MapData, ScopeKey, ScopeSessions>,
    cgroup_levels: HashMap<MapData, ScopeKey, [u32; MAX_CGROUP_LEVELS]>,
    sessions: Array<MapData, SessionEntry>,
    name_servers: HashMap<MapData, NameServer, u32>,
    ranges: HashMap<MapData, Address, u32>,
    interfaces: HashMap<MapData, u32, u32>,
    guards: LpmTrie<MapData, GuardKey, u32>,
    counters: PerCpuArray<MapData, u64>,
    sockets: SockMap<MapData>,
    clients: SkStorage<MapData, ShownClient>,
    arrays: Arrays,
}

impl Maps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self {
            candidates: typed(ebpf, CANDIDATES)?,
            scopes: typed(ebpf, SCOPES)?,
            cgroup_levels: typed(ebpf, CGROUP_LEVELS)?,
            sessions: typed(ebpf, SESSIONS)?,
            name_servers: typed(ebpf, NAME_SERVERS)?,
            ranges: typed(ebpf, RANGES)?,
            interfaces: typed(ebpf, INTERFACES)?,
            guards: typed(ebpf, GUARDS)?,
            counters: typed(ebpf, COUNTERS)?,
            sockets: typed(ebpf, SOCKETS)?,
            clients: typed(ebpf, CLIENTS)?,
            arrays: Arrays::take(ebpf)?,
        })
    }

    /// The arrays of the maps of each session, to change them while others change the rest.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn slots(&self) -> Result<Slots, MapError> {
        self.arrays.slots()
    }

    /// Begins to count for a session.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn reset_counters(&mut self, slot: u32) -> Result<(), MapError> {
        for counter in Counter::ALL {
            let zero = PerCpuValues::try_from(vec![0; processors()?]);
            let zero = zero.map_err(AyaError::from).map_err(broken(COUNTERS))?;
            self.counters
                .set(place_of(slot, *counter), zero, 0)
                .map_err(broken(COUNTERS))?;
        }

        Ok(())
    }

    /// Lets the programs know a session, its interfaces and its aliases. Nothing is steered to it
    /// before it has a scope.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn announce(&mut self, slot: u32, plan: &SessionPlan) -> Result<(), MapError> {
        self.sessions
            .set(slot, plan.entry(), 0)
            .map_err(broken(SESSIONS))?;
        for interface in plan.interfaces.all() {
            self.interfaces
                .insert(interface, slot, 0)
                .map_err(broken(INTERFACES))?;
        }
        for range in plan.aliases.ranges() {
            self.ranges.insert(range, slot, 0).map_err(broken(RANGES))?;
        }
        for key in guards(slot, plan) {
            self.guards
                .insert(&key, GuardRule::Steered as u32, 0)
                .map_err(broken(GUARDS))?;
        }

        Ok(())
    }

    /// Takes back what [`Self::announce`] and [`Self::set_sockets`] did, as far as it is there, and goes
    /// on after a failure.
    ///
    /// # Errors
    ///
    /// The first of those of bpf(2).
    pub fn withdraw(&mut self, slot: u32, plan: &SessionPlan) -> Result<(), MapError> {
        // Programs that run have seen the id, and may still read all else.
        let entry = SessionEntry {
            id: 0,
            ..plan.entry()
        };
        let mut result = self.sessions.set(slot, entry, 0).map_err(broken(SESSIONS));
        for key in guards(slot, plan) {
            result = result.and(gone(self.guards.remove(&key)).map_err(broken(GUARDS)));
        }
        for range in plan.aliases.ranges() {
            result = result.and(gone(self.ranges.remove(&range)).map_err(broken(RANGES)));
        }
        for interface in plan.interfaces.all() {
            let removed = gone(self.interfaces.remove(&interface));
            result = result.and(removed.map_err(broken(INTERFACES)));
        }
        for place in [LISTENER, UDP_SOCKET] {
            let removed = self
                .sockets
                .clear_index(&(slot * SOCKETS_PER_SESSION + place));
            // EINVAL is the answer for a place without a socket.
            let removed = match removed {
                Err(error) if !is_invalid(&error) => Err(error),
                _ => Ok(()),
            };
            result = result.and(removed.map_err(broken(SOCKETS)));
        }

        result
    }

    /// The sockets that serve the aliases of a session. They come before [`Self::announce`]: an earlier
    /// session may have kept those that it had.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_sockets(
        &mut self,
        slot: u32,
        listener: &impl AsRawFd,
        udp: &impl AsRawFd,
    ) -> Result<(), MapError> {
        let first = slot * SOCKETS_PER_SESSION;
        for (place, socket) in [
            (LISTENER, listener.as_raw_fd()),
            (UDP_SOCKET, udp.as_raw_fd()),
        ] {
            self.sockets
                .set(first + place, &socket, 0)
                .map_err(broken(SOCKETS))?;
        }

        Ok(())
    }

    /// From now on a local process of the session's user to which this socket connects is shown `client`
    /// as its peer, for as long as socket and session live.
    ///
    /// # Errors
    ///
    /// Those of bpf(2). ENOMEM: the socket has no memory left for what is kept with it.
    pub fn show_client(
        &mut self,
        slot: u32,
        id: u32,
        socket: impl AsFd,
        client: SocketAddr,
    ) -> Result<(), MapError> {
        let port = client.port().to_be_bytes();
        let shown = ShownClient::new(id, slot, address(client.ip()), port);

        self.clients
            .insert(&socket.as_fd(), shown, 0)
            .map_err(broken(CLIENTS))
    }

    /// Sets whether a session serves a name server.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_name_server(
        &mut self,
        slot: u32,
        server: SocketAddr,
        is_served: bool,
    ) -> Result<(), MapError> {
        let port = server.port().to_be_bytes();
        let key = NameServer::new(slot, address(server.ip()), port);
        let changed = if is_served {
            self.name_servers.insert(key, 1, 0)
        } else {
            gone(self.name_servers.remove(&key))
        };

        changed.map_err(broken(NAME_SERVERS))
    }

    /// Sets the first session that may steer a network in a network namespace: `Some(None)` if
    /// none may whatever they ask for, `None` to say nothing of it.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_candidate(
        &mut self,
        netns: u64,
        network: IpNet,
        first: Option<Option<u32>>,
    ) -> Result<(), MapError> {
        let (address, prefix_len) = prefix(network);
        let bits = CandidateKey::NETNS_BITS + prefix_len;
        let key = Key::new(bits, CandidateKey { netns, address });
        let changed = match first {
            Some(slot) => {
                let slot = slot.unwrap_or(CandidateKey::NOBODY);
                self.candidates.insert(&key, slot, 0)
            }
            None => gone(self.candidates.remove(&key)),
        };

        changed.map_err(broken(CANDIDATES))
    }

    /// Sets the sessions of a scope, the first to decide first, at most 8.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_scope(&mut self, task: ScopeTask, slots: &[u32]) -> Result<(), MapError> {
        let key = task.key();
        let changed = if slots.is_empty() {
            gone(self.scopes.remove(&key))
        } else {
            let mut sessions = ScopeSessions::default();
            let count = slots.len().min(MAX_PER_SCOPE);
            sessions.slots[..count].copy_from_slice(&slots[..count]);
            sessions.count = count as u32;
            self.scopes.insert(key, sessions, 0)
        };

        changed.map_err(broken(SCOPES))
    }

    /// Sets the depths of the cgroups that are scopes of a user, the deepest first, at most 8. The
    /// task is any of that user's.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_cgroup_levels(&mut self, task: ScopeTask, levels: &[u32]) -> Result<(), MapError> {
        let key = task.key();
        let changed = if levels.is_empty() {
            gone(self.cgroup_levels.remove(&key))
        } else {
            let mut all = [0; MAX_CGROUP_LEVELS];
            let count = levels.len().min(MAX_CGROUP_LEVELS);
            all[..count].copy_from_slice(&levels[..count]);
            self.cgroup_levels.insert(key, all, 0)
        };

        changed.map_err(broken(CGROUP_LEVELS))
    }

    /// All counters of a session, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn counters(&self, slot: u32) -> Result<Vec<CounterValue>, MapError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self
                    .counters
                    .get(&place_of(slot, *counter), 0)
                    .map_err(broken(COUNTERS))?;
                Ok(CounterValue {
                    counter: *counter,
                    value: values.iter().sum(),
                })
            })
            .collect()
    }
}

fn guards(slot: u32, plan: &SessionPlan) -> impl Iterator<Item = Key<GuardKey>> {
    let networks = plan.aliases.networks();
    let directions = [Direction::ToCluster, Direction::FromCluster];

    directions.into_iter().flat_map(move |direction| {
        networks.map(|network| {
            let (address, prefix_len) = prefix(network);
            let key = GuardKey {
                slot,
                direction: direction as u32,
                address,
            };
            Key::new(GuardKey::FIXED_BITS + prefix_len, key)
        })
    })
}

fn is_invalid(error: &AyaError) -> bool {
    matches!(error, AyaError::SyscallError(error)
        if error.io_error.kind() == io::ErrorKind::InvalidInput)
}

fn place_of(slot: u32, counter: Counter) -> u32 {
    slot * Counter::COUNT + counter as u32
}

fn processors() -> Result<usize, MapError> {
    nr_cpus().map_err(|(_, source)| MapError::Descriptor {
        name: COUNTERS,
        source,
    })
}

/// Returns whether a process or a program still has the map with this id.
pub fn is_map_alive(id: u32) -> bool {
    MapInfo::from_id(id).is_ok()
}

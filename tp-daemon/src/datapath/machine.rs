//! The data path of this machine: programs that are loaded while there is a session, and the maps
//! by which they know the sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tp_core::{
    alias::ranges::AliasRange,
    sessions::{
        self, Candidate, MapChange, NetworkChanges, NetworkRule, Overlaps, SessionRegistry,
        SessionScope, SessionsError, Slot,
    },
};
use tp_ebpf_loader::{
    AliasBlock, Aliases, CounterValue, DataPath, Interfaces, Networks, ScopeTask, SessionMaps,
    SessionPlan, SlotMaps, Slots, UserScope,
};
use tp_process::sync::lock;
use tp_root_api::{MAX_OVERLAPS, Overlap};

use super::{
    programs::{Expectation, Programs},
    random,
};
use crate::{request_error::RequestError, scope::Hierarchy, wait::pause};

/// Interfaces of ours have indices from here on, which the kernel reaches for no other.
const FIRST_INTERFACE: u32 = 0x2000_0000;
const INTERFACES: u32 = 0x4000_0000;

/// The part of an IPv6 address behind the prefix of 64 bits; aliases have none but their index.
const HOST6: u128 = 1 << 32;
const UNIQUE_LOCAL_BITS: u8 = 64;
/// A change of a map is tried as often: the kernel has no memory for a moment where it must not wait
/// for some.
const MAX_ATTEMPTS: usize = 4;
const RETRY_DELAY: Duration = Duration::from_millis(5);

// The registry and the maps of the programs have the same bounds.
const _: () = assert!(tp_ebpf_loader::MAX_SESSIONS == sessions::MAX_SESSIONS);
const _: () = assert!(tp_ebpf_loader::MAX_PER_SCOPE == sessions::MAX_PER_SCOPE);
const _: () = assert!(tp_ebpf_loader::MAX_CGROUP_LEVELS == sessions::MAX_CGROUP_LEVELS);

pub(crate) struct Machine {
    programs: Arc<Programs>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registry: SessionRegistry,
    sessions: BTreeMap<Slot, Known>,
    /// Ids of sessions that there ever were.
    last_id: u32,
    data_path: Option<DataPath>,
    /// Slots of which the maps may still speak: not given out again while the programs are loaded.
    unusable: BTreeSet<Slot>,
}

/// What else is known of a session in the registry.
struct Known {
    pid: u32,
    /// Until it steers no more.
    networks: Option<Networks>,
    plan: SessionPlan,
}

/// A session as the machine is to know it.
pub(crate) struct Registration {
    pub(crate) scope: SessionScope,
    pub(crate) user: Option<UserScope>,
    pub(crate) udp: bool,
    pub(crate) pid: u32,
    pub(crate) range: AliasRange,
}

/// The maps of a session that the programs do not find yet.
pub(crate) struct Unplaced {
    slots: Slots,
    slot: Slot,
    maps: SlotMaps,
}

/// A session's place in the data path; dropping it takes it out of there.
pub(crate) struct Registered {
    machine: Arc<Machine>,
    slot: Slot,
    plan: SessionPlan,
    is_steering: bool,
    /// The maps may still speak of it.
    is_left: bool,
}

impl Machine {
    pub(crate) fn new(programs: Programs) -> Self {
        Self {
            programs: Arc::new(programs),
            state: Mutex::default(),
        }
    }

    /// Begins to load the programs if there are none, for a session that is about to come.
    pub(crate) fn expect(&self) -> Option<Expectation> {
        // While somebody changes the data path, there is one, or its programs are being loaded.
        let is_absent = self
            .state
            .try_lock()
            .is_ok_and(|state| state.data_path.is_none());

        is_absent.then(|| self.programs.expect())
    }

    /// The hierarchy of cgroups to which the programs are attached.
    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        self.programs.hierarchy()
    }

    /// The networks that aliases of a further session avoid: those of other aliases and, if `of` says so
    /// of its user, those that another session steers.
    pub(crate) fn networks(&self, of: impl Fn(Option<u32>) -> bool) -> Vec<Ipv4Net> {
        self.state()
            .registry
            .networks(of)
            .filter_map(|network| match network {
                IpNet::V4(network) => Some(network),
                IpNet::V6(_) => None,
            })
            .collect()
    }

    /// Takes a place for a session that steers nothing yet, and attaches the programs for the first. The
    /// maps must be placed before the session is announced.
    pub(crate) fn register(
        self: &Arc<Self>,
        registration: &Registration,
        maps: SessionMaps,
    ) -> Result<(Registered, Unplaced, Aliases), RequestError> {
        let mut state = self.state();
        let range = &registration.range;
        if state.data_path.is_none() {
            state.data_path = Some(self.programs.attach()?);
        }
        let plan = state.plan(registration);
        let own = vec![
            range.aliases.into(),
            range.link().into(),
            Ipv6Net::new_assert(plan.aliases.base6, UNIQUE_LOCAL_BITS).into(),
        ];
        let (slot, changes) = match state.registry.open(registration.scope, own) {
            Ok(opened) => opened,
            Err(error) => {
                state.unload_if_unused();
                return Err(RequestError::unsupported(error.to_string()));
            }
        };
        let registered = Registered {
            machine: Arc::clone(self),
            slot,
            plan,
            is_steering: true,
            is_left: false,
        };
        let entered = state.enter(slot, plan, maps, registration.pid, changes);
        // To take the place back takes the lock.
        drop(state);
        let (unplaced, aliases) = entered?;

        Ok((registered, unplaced, aliases))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Unplaced {
    /// Returns once all programs find the maps.
    pub(crate) fn place(&self) -> Result<(), RequestError> {
        Ok(self.slots.put(self.slot, &self.maps)?)
    }
}

impl Registered {
    /// The indices that the session's interfaces are to have.
    pub(crate) fn interfaces(&self) -> Interfaces {
        self.plan.interfaces
    }

    /// Lets the programs serve the session.
    pub(crate) fn announce(
        &self,
        (listener, udp): (&impl AsRawFd, &impl AsRawFd),
    ) -> Result<(), RequestError> {
        self.with(|data_path| {
            let maps = data_path.maps_mut();
            maps.set_sockets(self.slot, listener, udp)?;
            maps.announce(self.slot, &self.plan)?;
            Ok(())
        })
    }

    /// Changes the programs' attachment.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut DataPath) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        work(self.machine.state().data_path_mut()?)
    }

    /// The IPv6 alias with index 0.
    pub(crate) fn alias_base6(&self) -> Ipv6Addr {
        self.plan.aliases.base6
    }

    /// The address at the workstation's end, beside the aliases.
    pub(crate) fn host_address6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.plan.aliases.base6.to_bits() | HOST6)
    }

    /// Changes the networks that the session steers.
    pub(crate) fn steer(&self, changes: &NetworkChanges) -> Result<(), RequestError> {
        let mut state = self.machine.state();
        let changes = state.registry.steer(self.slot, changes).map_err(refused)?;

        state.apply(changes)
    }

    /// Replaces the name servers whose port is steered.
    pub(crate) fn set_name_servers(&self, servers: &[SocketAddr]) -> Result<(), RequestError> {
        let mut state = self.machine.state();
        let changes = state.registry.set_name_servers(self.slot, servers);

        state.apply(changes.map_err(refused)?)
    }

    /// Shows a client to the local process that a socket of the session connects to.
    pub(crate) fn show_client(
        &self,
        socket: impl AsFd,
        client: SocketAddr,
    ) -> Result<(), RequestError> {
        self.with(|data_path| {
            let maps = data_path.maps_mut();
            Ok(maps.show_client(self.slot, self.plan.id, socket, client)?)
        })
    }

    pub(crate) fn counters(&self) -> Result<Vec<CounterValue>, RequestError> {
        let state = self.machine.state();

        Ok(state.data_path()?.maps().counters(self.slot)?)
    }

    /// What earlier sessions of the same scope have of this one, at most [`MAX_OVERLAPS`].
    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let state = self.machine.state();
        let Overlaps {
            networks,
            name_servers,
        } = state.registry.overlaps(self.slot);
        let overlap = |network, is_name_server, with: Slot| {
            let pid = state.sessions.get(&with)?.pid;
            Some(Overlap {
                network,
                is_name_server,
                pid,
            })
        };
        let servers = name_servers
            .into_iter()
            .filter_map(|(server, with)| overlap(server.ip().into(), true, with));
        let networks = networks
            .into_iter()
            .filter_map(|(network, with)| overlap(network, false, with));

        servers.chain(networks).take(MAX_OVERLAPS).collect()
    }

    /// No further socket is steered; those that are still work.
    pub(crate) fn stop_steering(&mut self) {
        if !self.is_steering {
            return;
        }
        self.is_steering = false;
        let mut state = self.machine.state();
        let changes = state.registry.close(self.slot);
        // Its networks go with their map.
        if let Some(known) = state.sessions.get_mut(&self.slot) {
            known.networks = None;
        }
        if let Err(error) = state.apply(changes) {
            tracing::error!(%error, "Cannot end the steering of a session");
            self.is_left = true;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.stop_steering();
        let (withdrawn, slots) = self.machine.state().withdraw(self.slot, &self.plan);
        // Without the lock: it waits until programs have ended.
        let removed = slots.and_then(|slots| Ok(slots.remove(self.slot)?));
        let is_left = self.is_left || withdrawn.is_err() || removed.is_err();
        for error in [withdrawn.err(), removed.err()].into_iter().flatten() {
            tracing::error!(%error, "Cannot take a session out of the data path");
        }
        let mut state = self.machine.state();
        state.sessions.remove(&self.slot);
        if is_left {
            state.unusable.insert(self.slot);
        } else {
            state.registry.release(self.slot);
        }
        state.unload_if_unused();
    }
}

impl State {
    fn plan(&mut self, registration: &Registration) -> SessionPlan {
        // Marks of sockets outlive their sessions: no id comes twice.
        self.last_id += 1;
        let taken: BTreeSet<u32> = self
            .sessions
            .values()
            .map(|known| known.plan.interfaces.host)
            .collect();
        let host = loop {
            let host = FIRST_INTERFACE + 4 * (random() as u32 % (INTERFACES / 4));
            if !taken.contains(&host) {
                break host;
            }
        };

        SessionPlan {
            id: self.last_id,
            netns: registration.scope.netns,
            cgroup: registration.scope.cgroup.map(|cgroup| cgroup.id),
            user: registration.user,
            udp: registration.udp,
            aliases: AliasBlock {
                base4: u32::from(registration.range.aliases.addr()),
                base6: unique_local(),
                count: registration.range.alias_count(),
            },
            interfaces: Interfaces {
                host,
                veth: host + 1,
                tun: host + 2,
            },
        }
    }

    /// Notes a session, whose maps are still to be put into their slot: until it is announced, no
    /// program looks for them.
    fn enter(
        &mut self,
        slot: Slot,
        plan: SessionPlan,
        maps: SessionMaps,
        pid: u32,
        changes: Vec<MapChange>,
    ) -> Result<(Unplaced, Aliases), RequestError> {
        let data_path = self.data_path_mut()?;
        data_path.maps_mut().reset_counters(slot)?;
        let slots = data_path.maps().slots()?;
        let (maps, networks, aliases) = maps.into_parts(plan.aliases)?;
        let known = Known {
            pid,
            networks: Some(networks),
            plan,
        };
        self.sessions.insert(slot, known);
        self.apply(changes)?;

        Ok((Unplaced { slots, slot, maps }, aliases))
    }

    /// Makes all changes, as far as possible; the first failure is returned.
    fn apply(&mut self, changes: Vec<MapChange>) -> Result<(), RequestError> {
        changes
            .into_iter()
            .map(|change| {
                let mut attempt = 1;
                loop {
                    match self.apply_one(&change) {
                        Err(_) if attempt < MAX_ATTEMPTS => pause(RETRY_DELAY),
                        applied => return applied,
                    }
                    attempt += 1;
                }
            })
            .fold(Ok(()), Result::and)
    }

    fn apply_one(&mut self, change: &MapChange) -> Result<(), RequestError> {
        let maps = self
            .data_path
            .as_mut()
            .context("no programs are loaded")?
            .maps_mut();
        match *change {
            MapChange::Network(slot, network, rule) => {
                let rule = rule.map(|rule| rule == NetworkRule::Include);
                let known = self.sessions.get_mut(&slot);
                if let Some(networks) = known.and_then(|known| known.networks.as_mut()) {
                    networks.set(network, rule)?;
                }
            }
            MapChange::NameServer(slot, server, is_served) => {
                maps.set_name_server(slot, server, is_served)?;
            }
            MapChange::Candidate(netns, network, candidate) => {
                let first = candidate.map(|candidate| match candidate {
                    Candidate::Of(slot) => Some(slot),
                    Candidate::Nobody => None,
                });
                maps.set_candidate(netns, network, first)?;
            }
            MapChange::Scope(scope, ref slots) => maps.set_scope(task_of(scope), slots)?,
            MapChange::CgroupLevels(scope, ref levels) => {
                maps.set_cgroup_levels(task_of(scope), levels)?;
            }
        }

        Ok(())
    }

    fn withdraw(
        &mut self,
        slot: Slot,
        plan: &SessionPlan,
    ) -> (Result<(), RequestError>, Result<Slots, RequestError>) {
        let maps = match self.data_path_mut() {
            Ok(data_path) => data_path.maps_mut(),
            Err(error) => return (Ok(()), Err(error)),
        };
        let withdrawn = maps.withdraw(slot, plan).map_err(RequestError::from);

        (withdrawn, maps.slots().map_err(RequestError::from))
    }

    /// With the programs all that was left in their maps goes.
    fn unload_if_unused(&mut self) {
        if self.registry.is_empty_but_for(&self.unusable) {
            self.data_path = None;
            for slot in mem::take(&mut self.unusable) {
                self.registry.release(slot);
            }
        }
    }

    fn data_path(&self) -> Result<&DataPath, RequestError> {
        Ok(self.data_path.as_ref().context("no programs are loaded")?)
    }

    fn data_path_mut(&mut self) -> Result<&mut DataPath, RequestError> {
        Ok(self.data_path.as_mut().context("no programs are loaded")?)
    }
}

fn task_of(scope: SessionScope) -> ScopeTask {
    ScopeTask {
        netns: scope.netns,
        cgroup: scope.cgroup.map(|cgroup| cgroup.id),
        uid: scope.uid,
    }
}

fn refused(error: SessionsError) -> RequestError {
    RequestError::invalid(error.to_string())
}

/// A network of the private kind that nobody else has (RFC 4193 section 3.2), for aliases.
fn unique_local() -> Ipv6Addr {
    let random = u128::from(random());

    Ipv6Addr::from_bits(0xfd << 120 | (random & 0xff_ffff_ffff_ffff) << 64)
}

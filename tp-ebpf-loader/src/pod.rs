//! The program of one pod, and its maps: a set for each pod, gone with the value that made it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues, SockMap},
    programs::{SkLookup, sk_lookup::SkLookupLink},
    util::nr_cpus,
};
use tp_ebpf_common::{
    Address, Lease, MAX_NODE_ADDRESSES, MAX_OWN_ADDRESSES, MAX_POD_PORTS, POD_LISTENER4,
    POD_LISTENER6, PodCounter, PodPort, pod_port_flags,
};

use crate::{
    LoadError, MapError,
    data_path::{program, refused},
    map::{address, broken, copy, gone, take, typed},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tp-ebpf-pod.o"));

const REDIRECT: &str = "tp_redirect";
const PORTS: &str = "PORTS";
const LEASES: &str = "LEASES";
const NODES: &str = "NODES";
const OWN: &str = "OWN";
const LISTENERS: &str = "LISTENERS";
const COUNTERS: &str = "COUNTERS";

/// The program of a pod, attached to its network namespace, with the listeners it redirects to.
/// Dropping it detaches the program: the containers serve all ports again. It needs Linux 5.9, for
/// `sk_lookup`, and a limit of locked memory until Linux 5.11.
pub struct PodRedirect {
    // Fields drop in this order: first of all the program is detached.
    _link: SkLookupLink,
    ports: HashMap<MapData, u32, PodPort>,
    leases: Array<MapData, Lease>,
    leases_fd: OwnedFd,
    nodes: AddressSet,
    own: AddressSet,
    counters: PerCpuArray<MapData, u64>,
    _listeners: SockMap<MapData>,
    /// The intercepted ports.
    places: BTreeMap<u16, PodPort>,
    /// Places that no port has, the longest free first: the agent may still write the lease of a port
    /// that it had.
    free: VecDeque<u32>,
}

/// A map of addresses, of which the first that fit are taken.
struct AddressSet {
    name: &'static str,
    map: HashMap<MapData, Address, u32>,
    capacity: u32,
    known: Vec<Address>,
}

/// What was counted for one port since it was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodPortCounters {
    /// The port of the pod.
    pub port: u16,
    values: [u64; PodCounter::COUNT as usize],
}

impl PodPortCounters {
    /// The value of one counter.
    pub fn get(&self, counter: PodCounter) -> u64 {
        self.values[counter as usize]
    }
}

impl PodRedirect {
    /// Loads the program and attaches it to the network namespace `netns`. No port is redirected yet.
    /// The listeners are sockets of that namespace; the second one is for IPv6 alone.
    ///
    /// # Errors
    ///
    /// [`LoadError`]: the kernel or this build lacks something.
    pub fn attach(
        netns: BorrowedFd<'_>,
        listener4: BorrowedFd<'_>,
        listener6: Option<BorrowedFd<'_>>,
    ) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).map_err(Box::new)?;
        let mut listeners: SockMap<MapData> = typed(&mut ebpf, LISTENERS)?;
        let of_families = [(POD_LISTENER4, Some(listener4)), (POD_LISTENER6, listener6)];
        for (place, listener) in of_families {
            if let Some(listener) = listener {
                listeners
                    .set(place, &listener.as_raw_fd(), 0)
                    .map_err(broken(LISTENERS))?;
            }
        }
        let ports = typed(&mut ebpf, PORTS)?;
        let leases = take(&mut ebpf, LEASES)?;
        let Map::Array(data) = &leases else {
            return Err(MapError::Missing { name: LEASES }.into());
        };
        let leases_fd = copy(LEASES, data)?;
        let leases = Array::try_from(leases).map_err(broken(LEASES))?;
        let nodes = AddressSet::new(&mut ebpf, NODES, MAX_NODE_ADDRESSES)?;
        let own = AddressSet::new(&mut ebpf, OWN, MAX_OWN_ADDRESSES)?;
        let counters = typed(&mut ebpf, COUNTERS)?;

        let redirect = program::<SkLookup>(&mut ebpf, REDIRECT)?;
        redirect.load().map_err(refused(REDIRECT))?;
        let id = redirect.attach(netns).map_err(refused(REDIRECT))?;
        let link = redirect.take_link(id).map_err(refused(REDIRECT))?;

        Ok(Self {
            _link: link,
            ports,
            leases,
            leases_fd,
            nodes,
            own,
            counters,
            _listeners: listeners,
            places: BTreeMap::new(),
            free: (0..MAX_POD_PORTS).collect(),
        })
    }

    /// Sets all intercepted ports, each with whether the kubelet probes it by TCP or gRPC; those that
    /// were intercepted before keep their leases and counters. Returns the index of the lease of each
    /// port, `None` if there are more ports than 64, and then nothing is changed.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_ports(
        &mut self,
        ports: &BTreeMap<u16, bool>,
    ) -> Result<Option<BTreeMap<u16, u32>>, MapError> {
        if ports.len() > MAX_POD_PORTS as usize {
            return Ok(None);
        }
        let over: Vec<u16> = self.places.keys().copied().collect();
        for port in over.into_iter().filter(|port| !ports.contains_key(port)) {
            gone(self.ports.remove(&u32::from(port))).map_err(broken(PORTS))?;
            let place = self.places.remove(&port);
            self.free.extend(place.map(|place| place.lease));
        }
        for (port, is_probed) in ports {
            let known = self.places.get(port).map(|place| place.lease);
            let lease = match known {
                Some(lease) => lease,
                None => self.fresh_lease()?,
            };
            let flags = u32::from(*is_probed) * pod_port_flags::PROBED;
            let place = PodPort { lease, flags };
            self.ports
                .insert(u32::from(*port), place, 0)
                .map_err(broken(PORTS))?;
            self.places.insert(*port, place);
            self.free.retain(|index| *index != lease);
        }
        let leases = self.places.iter().map(|(port, place)| (*port, place.lease));

        Ok(Some(leases.collect()))
    }

    /// Sets the addresses of the node: connections from them to probed ports are left to the
    /// container. Of more than 64 the first are taken.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_nodes(&mut self, nodes: &[IpAddr]) -> Result<(), MapError> {
        self.nodes.set(nodes)
    }

    /// Sets the addresses of the pod: connections from them are left to the container, as those by
    /// loopback are anyway. Of more than 64 the first are taken.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn set_own(&mut self, own: &[IpAddr]) -> Result<(), MapError> {
        self.own.set(own)
    }

    /// The map of the leases, which a process without capabilities can map into memory and write: 64
    /// elements of 16 bytes, as [`tp_ebpf_common::Lease`] has them.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn leases(&self) -> Result<OwnedFd, MapError> {
        self.leases_fd
            .try_clone()
            .map_err(|source| MapError::Descriptor {
                name: LEASES,
                source,
            })
    }

    /// The counters of all intercepted ports.
    ///
    /// # Errors
    ///
    /// Those of bpf(2).
    pub fn counters(&self) -> Result<Vec<PodPortCounters>, MapError> {
        let mut ports = Vec::with_capacity(self.places.len());
        for (port, place) in &self.places {
            let mut values = [0; PodCounter::COUNT as usize];
            for counter in PodCounter::ALL {
                let index = place.lease * PodCounter::COUNT + counter as u32;
                let of_processors = self.counters.get(&index, 0).map_err(broken(COUNTERS))?;
                values[counter as usize] = of_processors.iter().sum();
            }
            ports.push(PodPortCounters {
                port: *port,
                values,
            });
        }

        Ok(ports)
    }

    /// The place that was free for the longest time, without lease and counts.
    fn fresh_lease(&mut self) -> Result<u32, MapError> {
        let index = *self
            .free
            .front()
            .expect("there are as many places as ports");
        self.leases
            .set(index, Lease::default(), 0)
            .map_err(broken(LEASES))?;
        let processors = nr_cpus().map_err(|(_, source)| MapError::Descriptor {
            name: COUNTERS,
            source,
        })?;
        for counter in PodCounter::ALL {
            let zero = PerCpuValues::try_from(vec![0; processors]).map_err(|source| {
                MapError::Descriptor {
                    name: COUNTERS,
                    source,
                }
            })?;
            self.counters
                .set(index * PodCounter::COUNT + counter as u32, zero, 0)
                .map_err(broken(COUNTERS))?;
        }

        Ok(index)
    }
}

impl AddressSet {
    fn new(ebpf: &mut Ebpf, name: &'static str, capacity: u32) -> Result<Self, MapError> {
        Ok(Self {
            name,
            map: typed(ebpf, name)?,
            capacity,
            known: Vec::new(),
        })
    }

    fn set(&mut self, addresses: &[IpAddr]) -> Result<(), MapError> {
        let addresses = addresses.iter().take(self.capacity as usize);
        let wanted: Vec<Address> = addresses.map(|it| address(*it)).collect();
        for known in self.known.drain(..) {
            if !wanted.contains(&known) {
                gone(self.map.remove(&known)).map_err(broken(self.name))?;
            }
        }
        for address in &wanted {
            self.map.insert(address, 1, 0).map_err(broken(self.name))?;
        }
        self.known = wanted;

        Ok(())
    }
}

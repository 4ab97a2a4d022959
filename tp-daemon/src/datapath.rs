//! What a session has of the data path: private namespace, veth, TUN and its place among the
//! sessions, all made and dropped as one ([`Bundle`]). The programs are the machine's
//! ([`machine::Machine`]).

use std::{
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsFd,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::Context;
use ipnet::IpNet;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};
use tp_core::{
    alias::{
        QUARANTINE_LIFETIME,
        ranges::{self, AliasRange},
    },
    sessions::{NetworkChanges, SessionScope},
};
use tp_ebpf_loader::{
    ALIAS_TABLE_LEN, Aliases, CounterValue, DataPath, Interfaces, SessionLinks, SessionMaps,
};
use tp_process::sync;
use tp_root_api::{Datapath, Descriptors, Overlap};

use crate::{
    confined::{self, set_sysctl},
    peer::PeerProcess,
    request_error::RequestError,
    scope::ResolvedScope,
    sys,
};

pub(crate) mod machine;
pub(crate) mod netns;
pub(crate) mod programs;
pub(crate) mod quota;

mod aliases;
mod diag;
mod links;

use aliases::{Namespaces, Recycler};
use links::{HOST_MAC, INNER_MAC, MTU, Netlink, VethPair};
use machine::{Machine, Registered, Registration, Unplaced};
use netns::NetNamespace;
use quota::{Quota, Reservation};

const INNER_VETH: &str = "veth0";
const TUN: &str = "tun0";

/// The workstation's end of a veth pair is named by this prefix and hexadecimal digits.
pub(crate) const LINK_PREFIX: &str = "tp";
pub(crate) const LINK_DIGITS: usize = 8;

/// A burst of connects must lose no SYN to the session and no approved SYN back.
const TUN_QUEUE_LEN: u32 = 4096;
const BACKLOG: i32 = 4096;
const UDP_RECEIVE_BUFFER: usize = 4 << 20;

/// Held from the search for a free range until a session is registered with it.
static CHOOSING_RANGE: Mutex<()> = Mutex::new(());

/// The session that a bundle is for, and the machine that it is made on.
pub(crate) struct DatapathRequest<'a> {
    /// The network namespace of the session.
    pub(crate) host: NetNamespace,
    /// The process of the session.
    pub(crate) peer: &'a PeerProcess,
    /// The sockets to steer.
    pub(crate) scope: ResolvedScope,
    /// UDP to networks is steered too.
    pub(crate) udp: bool,
    /// Networks that the aliases must avoid, besides those that this machine knows.
    pub(crate) avoid: &'a [IpNet],
    /// The count of bundles and of what remains of them.
    pub(crate) quota: &'a Arc<Quota>,
    pub(crate) machine: &'a Arc<Machine>,
    pub(crate) tuning: Tuning,
}

/// Values that tests change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// The largest number of aliases, a power of two.
    pub(crate) alias_count: u32,
    /// The shortest quarantine of an alias before it stands for another address.
    pub(crate) quarantine: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            alias_count: ALIAS_TABLE_LEN as u32,
            quarantine: QUARANTINE_LIFETIME,
        }
    }
}

/// A live bundle; dropping it restores the machine.
///
/// Nothing is steered to it any more when its fields drop, in this order: the recycler stops, the
/// link ends the sockets that use it while the guards are attached, then its place is free.
pub(crate) struct Bundle {
    recycler: Recycler,
    _link: Link,
    _links: SessionLinks,
    registered: Registered,
    _reservation: Reservation,
}

impl Bundle {
    pub(crate) fn open(
        request: DatapathRequest<'_>,
    ) -> Result<(Self, Datapath, Descriptors), RequestError> {
        let reservation = request.quota.reserve(request.peer.uid)?;
        let inner = NetNamespace::private().context("cannot make a network namespace")?;
        // Before anything else assigns it another id.
        reservation.note_namespace(&inner)?;
        let netlink = request.host.run(Netlink::open)?;
        let maps = SessionMaps::create()?;
        reservation.note_maps(&maps.shared_ids()?);
        let (alias_table, heartbeat) = (maps.alias_table_fd()?, maps.heartbeat_fd()?);
        let Place {
            registered,
            unplaced,
            range,
            aliases,
        } = register(&request, &netlink, maps)?;

        let host = request.host.try_clone()?;
        let interfaces = registered.interfaces();
        // The kernel takes as long to place the maps as to make the interfaces.
        let (placed, made) = thread::scope(|scope| {
            let place = || unplaced.place();
            let placing = thread::Builder::new().spawn_scoped(scope, place);
            let made = Link::make(request.host, netlink, &inner, range, interfaces)
                .and_then(|link| Ok((link, inner.run(|| make_devices(&range, interfaces))?)));
            let placed = match placing {
                Ok(thread) => thread.join().expect("nothing panics there"),
                // The machine has no more threads; it takes longer without.
                Err(_) => place(),
            };
            (placed, made)
        });
        let (link, devices) = made?;
        placed?;
        let mut hooks = Vec::new();
        let links = inner.run(|| {
            registered.with(|data_path| {
                Ok(data_path.attach_inner(inner.as_fd(), INNER_VETH, TUN, &mut hooks)?)
            })
        })?;
        // The guard comes before the routes, and the routes before any socket is steered.
        link.host.run(|| {
            registered.with(|data_path| Ok(data_path.attach_host(&link.name, &mut hooks)?))
        })?;
        registered.announce((&devices.listener, &devices.udp))?;
        link.open()?;
        hooks.extend(DataPath::cgroup_hooks().map(str::to_owned));

        let description = Datapath {
            alias_base: range.aliases.addr(),
            alias_base6: registered.alias_base6(),
            alias_count: range.alias_count(),
            host_address: range.host,
            host_address6: registered.host_address6(),
            mtu: MTU,
            hooks,
            shows_clients: true,
        };
        let descriptors = Descriptors {
            listener: devices.listener.into(),
            udp: devices.udp.into(),
            tun: devices.tun.into(),
            alias_table,
            heartbeat,
        };
        let bundle = Self {
            recycler: Recycler::start(
                aliases,
                Namespaces { host, inner },
                request.tuning.quarantine,
            )?,
            _link: link,
            _links: links,
            registered,
            _reservation: reservation,
        };

        Ok((bundle, description, descriptors))
    }

    pub(crate) fn steer(&self, changes: &NetworkChanges) -> Result<(), RequestError> {
        self.registered.steer(changes)
    }

    pub(crate) fn set_name_servers(&self, servers: &[SocketAddr]) -> Result<(), RequestError> {
        self.registered.set_name_servers(servers)
    }

    pub(crate) fn show_client(
        &self,
        socket: impl AsFd,
        client: SocketAddr,
    ) -> Result<(), RequestError> {
        self.registered.show_client(socket, client)
    }

    pub(crate) fn counters(&self) -> Result<Vec<CounterValue>, RequestError> {
        self.registered.counters()
    }

    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        self.registered.overlaps()
    }

    /// The number of aliases that stand for an address. `ever_given` is the value of
    /// [`tp_ebpf_loader::Counter::Aliases`].
    pub(crate) fn aliases(&self, ever_given: u64) -> u64 {
        ever_given.saturating_sub(self.recycler.freed())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.registered.stop_steering();
    }
}

/// A session's place among the sessions.
struct Place {
    registered: Registered,
    unplaced: Unplaced,
    range: AliasRange,
    aliases: Aliases,
}

/// Chooses the addresses of a session's aliases, and takes its place among the sessions.
fn register(
    request: &DatapathRequest<'_>,
    netlink: &Netlink,
    maps: SessionMaps,
) -> Result<Place, RequestError> {
    let netns = request.host.run(host_cookie)?;
    let _choosing = sync::lock(&CHOOSING_RANGE);
    let mut in_use = netlink.networks()?;
    in_use.extend(request.avoid.iter().filter_map(|network| match network {
        IpNet::V4(network) => Some(network.trunc()),
        IpNet::V6(_) => None,
    }));
    // What other users steer is avoided as well, unless they leave nothing.
    let uid = request.peer.uid;
    let steered_by: [&dyn Fn(Option<u32>) -> bool; 2] =
        [&|_| true, &|of| of.is_none_or(|of| of == uid)];
    let range = steered_by.into_iter().find_map(|of| {
        let in_use = [in_use.as_slice(), &request.machine.networks(of)].concat();
        ranges::choose(&in_use, random() as u32)
    });
    let range = range.ok_or_else(|| {
        RequestError::unsupported(
            "no address range is free for aliases: routes, rules and addresses of this machine, \
             other sessions or networks of the cluster take all of 240.0.0.0/4",
        )
    })?;
    let range = range.limited_to(request.tuning.alias_count);
    let ResolvedScope { user, cgroup } = request.scope;
    let registration = Registration {
        scope: SessionScope {
            netns,
            cgroup,
            uid: user.map(|user| user.uid),
        },
        user,
        udp: request.udp,
        pid: request.peer.pid,
        range,
    };
    let (registered, unplaced, aliases) = request.machine.register(&registration, maps)?;

    Ok(Place {
        registered,
        unplaced,
        range,
        aliases,
    })
}

/// The veth pair, seen from the workstation. Dropping it ends every socket that uses it.
struct Link {
    host: NetNamespace,
    netlink: Netlink,
    name: String,
    index: u32,
    range: AliasRange,
}

impl Link {
    /// Makes the pair and gives it its addresses; the workstation's end stays down.
    fn make(
        host: NetNamespace,
        netlink: Netlink,
        inner: &NetNamespace,
        range: AliasRange,
        interfaces: Interfaces,
    ) -> Result<Self, RequestError> {
        let name = unused_name(&netlink)?;
        let pair = VethPair {
            host: (&name, interfaces.host),
            inner: (INNER_VETH, interfaces.veth),
        };
        netlink.add_veth(&pair, inner.as_fd())?;
        let link = Self {
            host,
            netlink,
            name,
            index: interfaces.host,
            range,
        };
        link.configure()?;

        Ok(link)
    }

    fn configure(&self) -> Result<(), RequestError> {
        let AliasRange { host, gateway, .. } = self.range;
        self.host.run(|| {
            set_sysctl("ipv6", &self.name, "disable_ipv6", "1")?;
            // Packets out of the private namespace are for this machine only.
            set_sysctl("ipv4", &self.name, "forwarding", "0")
        })?;
        self.netlink.add_address(self.index, host)?;
        self.netlink.add_neighbour(self.index, gateway, INNER_MAC)?;

        Ok(())
    }

    /// Brings the link up and adds the routes to the aliases.
    fn open(&self) -> Result<(), RequestError> {
        let AliasRange {
            aliases,
            host,
            gateway,
        } = self.range;
        self.netlink.set_up(self.index)?;
        self.netlink.add_link_route(self.index, gateway)?;
        self.netlink
            .add_alias_route(self.index, aliases, gateway, host)?;

        Ok(())
    }
}

impl Link {
    /// Returns whether the interface exists; false if another one has its index.
    fn is_there(&self) -> bool {
        self.netlink.name_of(self.index).as_deref() == Some(&self.name)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let aliases = self.range.aliases;
        let destroy = || Ok::<_, io::Error>(diag::destroy_sockets_to(aliases));
        match self.host.run(destroy) {
            Ok(count) => tracing::debug!(count, "Ended the sockets of a bundle"),
            Err(error) => tracing::debug!(%error, "Cannot end the sockets of a bundle"),
        }
        if !self.is_there() {
            return;
        }
        // Once the session has died, the private namespace ends and takes both ends of the pair with it.
        if let Err(error) = self.netlink.delete(self.index)
            && self.is_there()
        {
            tracing::error!(error = format!("{error:#}"), "Cannot delete a link");
        }
    }
}

/// Sockets and interfaces in the private namespace.
struct Devices {
    listener: Socket,
    udp: Socket,
    tun: File,
}

/// Runs inside the private namespace.
fn make_devices(range: &AliasRange, interfaces: Interfaces) -> Result<Devices, RequestError> {
    let netlink = Netlink::open()?;
    for name in ["all", "default", INNER_VETH] {
        set_sysctl("ipv6", name, "disable_ipv6", "1")?;
        set_sysctl("ipv4", name, "rp_filter", "0")?;
        set_sysctl("ipv4", name, "forwarding", "0")?;
    }
    let loopback = netlink.index_of("lo")?;
    netlink.set_up(loopback)?;
    netlink.add_local_route(loopback, range.aliases)?;

    let Interfaces {
        veth,
        tun: tun_index,
        ..
    } = interfaces;
    netlink.add_neighbour(veth, range.host, HOST_MAC)?;
    netlink.set_up(veth)?;
    netlink.add_link_route(veth, range.host)?;
    // A steered socket may be bound to another address of the machine.
    netlink.add_default_route(veth, range.host)?;

    let tun = confined::open_tun()?;
    sys::make_tun(&tun, TUN, tun_index).context("cannot make a TUN device")?;
    set_sysctl("ipv4", TUN, "rp_filter", "0")?;
    netlink.set_tun(tun_index, TUN_QUEUE_LEN)?;

    Ok(Devices {
        listener: listener().context("cannot open the listener")?,
        udp: udp_socket().context("cannot open the UDP socket")?,
        tun,
    })
}

fn listener() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;

    Ok(socket)
}

fn udp_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    sys::receive_original_destination(&socket)?;
    set_socket_recv_buffer_size_force(&socket, UDP_RECEIVE_BUFFER)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into())?;
    socket.set_nonblocking(true)?;

    Ok(socket)
}

/// Runs inside the session's namespace.
fn host_cookie() -> Result<u64, RequestError> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;

    sys::netns_cookie(&socket).map_err(|_| {
        RequestError::unsupported("this kernel cannot tell network namespaces apart; tp needs 5.14")
    })
}

/// A name that no interface here has: an index may be reused, such a name is not.
fn unused_name(netlink: &Netlink) -> Result<String, RequestError> {
    for _ in 0..16 {
        let number = random() as u32;
        let name = format!("{LINK_PREFIX}{number:0LINK_DIGITS$x}");
        if netlink.index_of(&name).is_err() {
            return Ok(name);
        }
    }

    Err(anyhow::anyhow!("cannot find an unused interface name").into())
}

/// `RandomState` has random keys, so its hash of nothing is a random number.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

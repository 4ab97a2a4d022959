//! This machine's own addresses and networks, by rtnetlink, which any user may read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tp_core::steering::{Link, Local};
use tp_proto::fault::{Fault, FaultKind};
use tp_root_api::Datapath;

/// The kernel answers in microseconds; beyond this it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes come in bursts, which are read together.
const SETTLE_DELAY: Duration = Duration::from_millis(200);
/// Notifications can be lost in a burst, so the network is read without one as well.
const POLL_INTERVAL: Duration = Duration::from_secs(30);
/// Before an interface that seems broken is read again.
const RECHECK_DELAY: Duration = Duration::from_millis(20);
/// Bounds what is read on a machine that carries the routes of the internet.
const MAX_ROUTES: usize = 65_536;
/// Routes with a shorter prefix are default routes in disguise.
const MIN_PREFIX_LEN: u8 = 4;

/// The networks that a data path uses itself.
pub(super) fn of_datapath(datapath: &Datapath) -> [Ipv4Net; 2] {
    let prefix_len = 32 - datapath.alias_count.checked_ilog2().unwrap_or_default() as u8;
    let net = |address, len| Ipv4Net::new(address, len).unwrap_or_default().trunc();

    [
        net(datapath.alias_base, prefix_len),
        net(datapath.host_address, 24),
    ]
}

/// Reads the network of this namespace, and again whenever it changes.
pub(super) struct Observer {
    handle: Handle,
    changes: futures::channel::mpsc::UnboundedReceiver<Change>,
    _connection: AbortOnDropHandle<()>,
    own_address: Ipv4Addr,
    own: InterfaceState,
}

type Change = (
    rtnetlink::packet_core::NetlinkMessage<rtnetlink::packet_route::RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
);

impl Observer {
    /// `own_address` is that of the data path's own interface, which is left out.
    pub(super) fn open(own_address: Ipv4Addr) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Link,
        ];
        let (connection, handle, changes) = new_multicast_connection(&groups)?;

        Ok(Self {
            handle,
            changes,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
            own_address,
            own: InterfaceState::default(),
        })
    }

    /// Reads the state that [`Self::watch`] begins with.
    pub(super) async fn read(&mut self) -> Result<Local, Fault> {
        let (local, own) = self.look().await?;
        self.own = own;

        Ok(local)
    }

    async fn look(&self) -> Result<(Local, InterfaceState), Fault> {
        let unreadable = |error: &dyn Display| {
            let message = format!("routes and addresses of this machine cannot be read: {error}");
            Fault::new(FaultKind::Failed, message)
        };
        let read = async {
            let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let routes = self.handle.route().get(filter).execute();
            let routes: Vec<_> = routes.take(MAX_ROUTES).try_collect().await?;
            let addresses = self.handle.address().get().execute();
            let addresses: Vec<_> = addresses.try_collect().await?;
            let links: Vec<_> = self.handle.link().get().execute().try_collect().await?;
            let own = InterfaceState::of(&addresses, &routes, &links, self.own_address);
            let names = links
                .into_iter()
                .filter_map(|link| {
                    let name = link.attributes.into_iter().find_map(|it| match it {
                        LinkAttribute::IfName(name) => Some(name),
                        _ => None,
                    })?;
                    Some((link.header.index, name))
                })
                .collect();

            let found = sorted(&addresses, &routes, &names, self.own_address);
            Ok::<_, rtnetlink::Error>((found, own))
        };

        match timeout(ANSWER_TIMEOUT, read).await {
            Ok(found) => found.map_err(|error| unreadable(&error)),
            Err(_) => Err(unreadable(&"the kernel does not answer")),
        }
    }

    /// Publishes every change until aborted. Ends when another program has taken from the data path's
    /// own interface its address, a route or the link that it had at [`Self::read`].
    pub(super) async fn watch(mut self, local: watch::Sender<Local>) -> io::Result<()> {
        let mut pause = SETTLE_DELAY;
        let mut is_broken = false;
        loop {
            let look = if is_broken {
                RECHECK_DELAY
            } else {
                POLL_INTERVAL
            };
            match timeout(look, self.changes.next()).await {
                Ok(Some(_)) => {
                    // Drained meanwhile: unread messages wait in memory.
                    let due = Instant::now() + pause;
                    while let Ok(Some(_)) = timeout_at(due, self.changes.next()).await {}
                }
                Err(_) => {}
                Ok(None) => sleep(look).await,
            }
            let begun = Instant::now();
            let found = self.look().await;
            // Where many routes change all the time, reading takes a tenth of the time at most.
            pause = SETTLE_DELAY.max(10 * begun.elapsed());
            match found {
                Ok((found, own)) => {
                    local.send_if_modified(|old| {
                        let is_new = *old != found;
                        *old = found;
                        is_new
                    });
                    let is_whole = own.has_all_of(&self.own);
                    // A dump during a change may lack entries, so it is read twice.
                    if !is_whole && is_broken {
                        return Err(io::Error::other(
                            "the interface of this connection was changed by another program",
                        ));
                    }
                    is_broken = !is_whole;
                }
                Err(fault) => tracing::info!(reason = %fault, "Network cannot be read"),
            }
        }
    }
}

/// The state of the data path's own interface. Without it, packets to aliases are lost or leave the machine.
#[derive(Debug, Default)]
struct InterfaceState {
    is_up: bool,
    routes: BTreeSet<Ipv4Net>,
}

impl InterfaceState {
    /// The default if no interface has the address.
    fn of(
        addresses: &[AddressMessage],
        routes: &[RouteMessage],
        links: &[LinkMessage],
        own: Ipv4Addr,
    ) -> Self {
        let Some(index) = index_of(addresses, own) else {
            return Self::default();
        };
        let up = LinkFlags::Up | LinkFlags::LowerUp;

        Self {
            is_up: links
                .iter()
                .any(|link| link.header.index == index && link.header.flags.contains(up)),
            routes: routes
                .iter()
                .filter(|route| interface(route) == Some(index))
                .filter_map(destination)
                .collect(),
        }
    }

    fn has_all_of(&self, before: &Self) -> bool {
        self.is_up >= before.is_up && self.routes.is_superset(&before.routes)
    }
}

/// The index of the interface that has the address.
fn index_of(addresses: &[AddressMessage], own: Ipv4Addr) -> Option<u32> {
    let mut found = addresses.iter().filter_map(address);

    found
        .find(|(_, address, _)| *address == own)
        .map(|(index, _, _)| index)
}

/// Sorts addresses and routes. The network of an address is connected whether the kernel, a DHCP client
/// or nobody made a route to it.
fn sorted(
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
    names: &BTreeMap<u32, String>,
    own: Ipv4Addr,
) -> Local {
    let mut local = Local::default();
    let own_index = index_of(addresses, own);
    let is_own = |index: Option<u32>| own_index.is_some() && index == own_index;
    let name = |index: Option<u32>| {
        index
            .and_then(|index| names.get(&index))
            .cloned()
            .unwrap_or_else(|| "several interfaces".to_owned())
    };
    let mut connected = BTreeSet::new();
    for (index, address, network) in addresses.iter().filter_map(address) {
        if is_own(Some(index)) {
            continue;
        }
        local.own.insert(address);
        if network.prefix_len() < 32 {
            let interface = name(Some(index));
            connected.insert(Link { network, interface });
        }
    }
    let mut routed = BTreeSet::new();
    for route in routes {
        let (network, index) = (destination(route), interface(route));
        let Some(network) = network.filter(|_| !is_own(index)) else {
            continue;
        };
        let interface = name(index);
        let link = Link { network, interface };
        match route.header.kind {
            RouteType::Local if network.prefix_len() == 32 => {
                local.own.insert(network.addr());
            }
            RouteType::Local => {
                connected.insert(link);
            }
            RouteType::Unicast if network.prefix_len() < MIN_PREFIX_LEN => {}
            RouteType::Unicast if !connected.contains(&link) => {
                routed.insert(link);
            }
            _ => {}
        }
    }
    local.connected = connected.into_iter().collect();
    local.routed = routed.into_iter().collect();

    local
}

/// The interface's index, its own address, and the network or the peer that it connects to.
fn address(message: &AddressMessage) -> Option<(u32, Ipv4Addr, Ipv4Net)> {
    let (mut own, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => own = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => peer = Some(*address),
            _ => {}
        }
    }
    let own = own.or(peer)?;
    let network = Ipv4Net::new(peer.unwrap_or(own), message.header.prefix_len).ok()?;

    Some((message.header.index, own, network.trunc()))
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let prefix_len = route.header.destination_prefix_length;

    route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, prefix_len).ok()
        }
        _ => None,
    })
}

fn interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_networks_and_routes_are_told_apart() {
        let addresses = [
            own("127.0.0.1/8", 1),
            own("10.1.1.2/24", 2),
            own("10.5.5.5/32", 2),
            // The session's own.
            own("243.1.255.1/24", 9),
        ];
        let routes = [
            route("10.1.1.2/32", RouteType::Local, 2),
            route("127.0.0.0/8", RouteType::Local, 1),
            // Of a DHCP client, in place of the kernel's.
            route("10.1.1.0/24", RouteType::Unicast, 2),
            route("10.96.0.0/12", RouteType::Unicast, 3),
            route("128.0.0.0/1", RouteType::Unicast, 3),
            route("10.2.0.0/16", RouteType::BlackHole, 0),
            route("10.1.1.255/32", RouteType::Broadcast, 2),
            route("243.1.255.1/32", RouteType::Local, 9),
            route("243.0.0.0/16", RouteType::Unicast, 9),
        ];
        let names = [(1, "lo"), (2, "e0"), (3, "vpn0"), (9, "tp0")];
        let names = names.map(|(index, name)| (index, name.to_owned())).into();

        let local = sorted(&addresses, &routes, &names, "243.1.255.1".parse().unwrap());

        let own = ["10.1.1.2", "10.5.5.5", "127.0.0.1"].map(|it| it.parse().unwrap());
        assert_eq!(local.own, BTreeSet::from(own));
        assert_eq!(
            local.connected,
            [link("10.1.1.0/24", "e0"), link("127.0.0.0/8", "lo")]
        );
        assert_eq!(local.routed, [link("10.96.0.0/12", "vpn0")]);
    }

    #[test]
    fn what_is_taken_from_the_bundles_interface_is_noticed() {
        let addresses = [own("10.1.1.2/24", 2), own("243.1.255.1/24", 9)];
        let routes = [
            route("10.1.1.0/24", RouteType::Unicast, 2),
            route("243.0.0.0/16", RouteType::Unicast, 9),
        ];
        let up = |index, flags| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.header.flags = flags;
            link
        };
        let links = [
            up(2, LinkFlags::Up | LinkFlags::LowerUp),
            up(9, LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running),
        ];
        let of = |addresses: &[_], routes: &[_], links: &[_]| {
            InterfaceState::of(addresses, routes, links, "243.1.255.1".parse().unwrap())
        };
        let before = of(&addresses, &routes, &links);

        assert!(of(&addresses, &routes[1..], &links[1..]).has_all_of(&before));
        for broken in [
            of(&addresses[..1], &routes, &links),
            of(&addresses, &routes[..1], &links),
            of(&addresses, &routes, &links[..1]),
            of(&addresses, &routes, &[up(9, LinkFlags::Up)]),
        ] {
            assert!(!broken.has_all_of(&before), "{broken:?}");
        }
    }

    fn own(address: &str, interface: u32) -> AddressMessage {
        let network: Ipv4Net = address.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.index = interface;
        message.header.prefix_len = network.prefix_len();
        message.attributes = vec![
            AddressAttribute::Address(network.addr().into()),
            AddressAttribute::Local(network.addr().into()),
        ];
        message
    }

    fn link(network: &str, interface: &str) -> Link {
        Link {
            network: network.parse().unwrap(),
            interface: interface.to_owned(),
        }
    }

    fn route(network: &str, kind: RouteType, interface: u32) -> RouteMessage {
        let network: Ipv4Net = network.parse().unwrap();
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .kind(kind)
            .output_interface(interface)
            .build()
    }
}

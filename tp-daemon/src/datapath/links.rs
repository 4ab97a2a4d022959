//! Links, addresses, routes and neighbours, by rtnetlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use anyhow::{Context, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use rtnetlink::{
    Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    new_connection,
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressScope},
        link::{InfoData, InfoVeth, LinkAttribute},
        neighbour::NeighbourState,
        nsid::{NsidAttribute, NsidMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
        rule::RuleAttribute,
    },
};
use tokio::runtime::{self, Runtime};

use super::netns::NetNamespace;

/// The kernel answers a request sooner or not at all.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Large enough that one segment of the largest size passes whole.
pub(crate) const MTU: u32 = 65521;

const TABLE_LOCAL: u32 = 255;

/// A wider route that refuses or drops packets is a precaution, not a range in use.
const MIN_UNREACHABLE_PREFIX_LEN: u8 = 8;

/// Link addresses are constants: the link has two ends and no neighbour discovery.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const INNER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The ends of a veth pair, each by its name and its index.
pub(crate) struct VethPair<'a> {
    pub(crate) host: (&'a str, u32),
    pub(crate) inner: (&'a str, u32),
}

/// A netlink socket of one network namespace.
pub(crate) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace, which it belongs to on any thread.
    pub(crate) fn open() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let (connection, handle, _) = new_connection()?;
        // Ends when the handle is dropped, at the latest with the runtime; `Netlink` owns both.
        runtime.spawn(connection);
        drop(guard);

        Ok(Self { runtime, handle })
    }

    /// Makes a veth pair: one end here, the other one in `inner_netns`. Both are down.
    pub(crate) fn add_veth(
        &self,
        pair: &VethPair<'_>,
        inner_netns: BorrowedFd<'_>,
    ) -> anyhow::Result<()> {
        let VethPair {
            host: (host, host_index),
            inner: (inner, inner_index),
        } = *pair;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .index(inner_index)
            .name(inner)
            .address(INNER_MAC.to_vec())
            .mtu(MTU)
            .setns_by_fd(inner_netns.as_raw_fd())
            .build();
        let mut message = LinkMessageBuilder::<LinkVeth>::new(host, inner)
            .address(HOST_MAC.to_vec())
            .mtu(MTU)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        message.header.index = host_index;

        self.wait(self.handle.link().add(message).execute())
            .context("cannot make a veth pair")
    }

    pub(crate) fn index_of(&self, name: &str) -> anyhow::Result<u32> {
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        let link = self
            .wait(links.try_next())?
            .with_context(|| format!("interface {name} is missing"))?;

        Ok(link.header.index)
    }

    /// The name of the interface with this index, if there is one.
    pub(crate) fn name_of(&self, index: u32) -> Option<String> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = self.wait(links.try_next()).ok()??;

        link.attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
    }

    pub(crate) fn set_up(&self, index: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();

        self.wait(self.handle.link().set(message).execute())
            .context("cannot bring an interface up")
    }

    pub(crate) fn set_tun(&self, index: u32, queue_len: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(MTU)
            .txqueuelen(queue_len)
            .up()
            .build();

        self.wait(self.handle.link().set(message).execute())
            .context("cannot bring the TUN up")
    }

    pub(crate) fn delete(&self, index: u32) -> anyhow::Result<()> {
        self.wait(self.handle.link().del(index).execute())
            .context("cannot delete an interface")
    }

    /// Adds an address of link scope: no program takes it for one that other machines can reach.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr) -> anyhow::Result<()> {
        let mut request = self.handle.address().add(index, IpAddr::V4(address), 32);
        request.message_mut().header.scope = AddressScope::Link;

        self.wait(request.execute())
            .context("cannot add an address")
    }

    /// Adds a permanent neighbour, which needs no ARP.
    pub(crate) fn add_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> anyhow::Result<()> {
        let request = self
            .handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .state(NeighbourState::Permanent)
            .link_layer_address(&mac);

        self.wait(request.execute())
            .context("cannot add a neighbour")
    }

    /// Adds a route to a direct neighbour.
    pub(crate) fn add_link_route(&self, index: u32, to: Ipv4Addr) -> anyhow::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();

        self.wait(self.handle.route().add(message).execute())
            .context("cannot add the route of the link")
    }

    pub(crate) fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> anyhow::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();

        self.wait(self.handle.route().add(message).execute())
            .context("cannot add the route to the workstation")
    }

    /// Adds the route to the aliases to the table `local`, which every lookup reads first: the rules
    /// of some VPNs come before the table `main`.
    pub(crate) fn add_alias_route(
        &self,
        index: u32,
        aliases: Ipv4Net,
        gateway: Ipv4Addr,
        source: Ipv4Addr,
    ) -> anyhow::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(aliases.addr(), aliases.prefix_len())
            .gateway(gateway)
            .onlink()
            .pref_source(source)
            .output_interface(index)
            .table_id(TABLE_LOCAL)
            .build();

        self.wait(self.handle.route().add(message).execute())
            .context("cannot add the route of the aliases")
    }

    /// Makes all aliases addresses of this namespace.
    pub(crate) fn add_local_route(&self, index: u32, aliases: Ipv4Net) -> anyhow::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(aliases.addr(), aliases.prefix_len())
            .output_interface(index)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .table_id(TABLE_LOCAL)
            .build();

        self.wait(self.handle.route().add(message).execute())
            .context("cannot make the aliases local")
    }

    /// The IPv4 networks of all routes (of any table), rules and addresses here.
    pub(crate) fn networks(&self) -> anyhow::Result<Vec<Ipv4Net>> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = self.wait(self.handle.route().get(filter).execute().try_collect())?;
        let rules = self.handle.rule().get(IpVersion::V4).execute();
        let rules: Vec<_> = self.wait(rules.try_collect())?;
        let addresses: Vec<_> = self.wait(self.handle.address().get().execute().try_collect())?;

        let of_routes = routes.iter().filter_map(destination);
        let of_rules = rules.iter().filter_map(|rule| {
            rule.attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RuleAttribute::Destination(IpAddr::V4(address)) => {
                        Ipv4Net::new(*address, rule.header.dst_len).ok()
                    }
                    _ => None,
                })
        });
        let of_addresses = addresses.iter().flat_map(|message| {
            let prefix_len = message.header.prefix_len;
            message.attributes.iter().filter_map(move |attribute| {
                let AddressAttribute::Address(IpAddr::V4(address)) = attribute else {
                    return None;
                };
                Ipv4Net::new(*address, prefix_len).ok()
            })
        });

        Ok(of_routes
            .chain(of_rules)
            .chain(of_addresses)
            .map(|network| network.trunc())
            .collect())
    }

    /// Assigns an id in this namespace to one that has none here yet.
    pub(crate) fn set_namespace_id(&self, namespace: &NetNamespace, id: i32) -> anyhow::Result<()> {
        let fd = u32::try_from(namespace.as_fd().as_raw_fd()).expect("descriptors are positive");
        let attributes = vec![NsidAttribute::Fd(fd), NsidAttribute::Id(id)];
        let answer = self.ask_namespace(attributes, RouteNetlinkMessage::NewNsId, NLM_F_ACK)?;

        match answer {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }

    /// Returns whether the namespace with this id still lives.
    pub(crate) fn knows_namespace(&self, id: i32) -> anyhow::Result<bool> {
        let attributes = vec![NsidAttribute::Id(id)];
        let answer = self.ask_namespace(attributes, RouteNetlinkMessage::GetNsId, 0)?;

        match answer {
            None => Ok(true),
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Some(error) => Err(error.into()),
        }
    }

    /// The error in the kernel's answer, if it is one.
    fn ask_namespace(
        &self,
        attributes: Vec<NsidAttribute>,
        kind: impl FnOnce(NsidMessage) -> RouteNetlinkMessage,
        flags: u16,
    ) -> anyhow::Result<Option<io::Error>> {
        let mut message = NsidMessage::default();
        message.attributes.extend(attributes);
        let mut request = NetlinkMessage::from(kind(message));
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request)?;
        let answer = self.wait(async { Ok(answers.next().await) })?;

        match answer.map(|answer| answer.payload) {
            Some(NetlinkPayload::Error(error)) if error.code.is_some() => Ok(Some(error.to_io())),
            // The stream of answers ends at an acknowledgement, without an item for it.
            _ => Ok(None),
        }
    }

    fn wait<T>(
        &self,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> anyhow::Result<T> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(TIMEOUT, request).await });
        match answer {
            Ok(result) => Ok(result?),
            Err(_) => bail!("the kernel does not answer over netlink"),
        }
    }
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let prefix_len = route.header.destination_prefix_length;
    let is_unreachable = matches!(
        route.header.kind,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
    );
    if is_unreachable && prefix_len < MIN_UNREACHABLE_PREFIX_LEN {
        return None;
    }

    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                Ipv4Net::new(*address, prefix_len).ok()
            }
            _ => None,
        })
}

//! Decides which networks are steered: the cluster's, except for this machine's own.
//!
//! The kernel takes the longest prefix; a network that is both included and excluded is excluded.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Sentences about one kind of network; further ones are only counted.
const MAX_NOTICES: usize = 8;

/// What is this machine, this link, or nobody in particular, whatever a session asks for: "this
/// network", loopback, link-local, multicast and broadcast. Not 240.0.0.0/4, which some clouds give
/// to pods.
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

/// What the user wants beside the cluster's networks, and what the session itself needs.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// `--also-proxy`
    pub also: Vec<IpNet>,
    /// `--never-proxy`
    pub never: Vec<IpNet>,
    /// The API server, and the proxy on the way to it.
    pub api_server: BTreeSet<IpNet>,
}

/// The addresses, links and routes that this machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Addresses of its interfaces.
    pub own: BTreeSet<Ipv4Addr>,
    /// Networks of its interfaces.
    pub connected: Vec<Link>,
    /// Networks that any route leads to.
    pub routed: Vec<Link>,
}

/// A network that an interface leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The network, without bits behind its prefix.
    pub network: Ipv4Net,
    /// The name of the interface.
    pub interface: String,
}

impl Local {
    /// True if the address is this machine's, or lies in a network that it is connected to.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.own.contains(&address)
            || self
                .connected
                .iter()
                .any(|it| it.network.contains(&address))
    }
}

impl Link {
    /// True if the link's network and `network` have addresses in common.
    pub fn overlaps(&self, network: &IpNet) -> bool {
        let own = IpNet::V4(self.network);

        own.contains(network) || network.contains(&own)
    }
}

/// The steered networks, and notices about them for the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Networks that are steered, without those in `exclude`; in ascending order.
    pub include: Vec<IpNet>,
    /// Networks that are not steered, where they are the longer prefix; in ascending order.
    pub exclude: Vec<IpNet>,
    /// Sentences for `tp status`.
    pub notices: Vec<String>,
}

/// True if `network` is never steered, whatever the user wishes: it lies in one of [`NEVER_STEERED`].
pub fn is_always_local(network: &IpNet) -> bool {
    let network = canonical(network);

    NEVER_STEERED.iter().any(|local| local.contains(&network))
}

/// Decides which of the cluster's `networks` are steered on a machine with the networks `local`.
pub fn decide(networks: &[IpNet], wishes: &Wishes, local: &Local) -> Decision {
    let links: Vec<&Link> = local
        .connected
        .iter()
        .filter(|link| !wishes.also.contains(&link.network.into()))
        .collect();
    let is_unwanted = |network: &&IpNet| wishes.never.iter().any(|never| never.contains(*network));
    let is_on_link = |network: &IpNet| {
        links.iter().any(|link| within(network, &link.network))
            && !wishes.also.iter().any(|also| also.contains(network))
    };

    let mut include: BTreeSet<IpNet> = networks
        .iter()
        .filter(|network| !is_on_link(network))
        // The longest match would be the cluster's.
        .filter(|network| !is_unwanted(network))
        .chain(&wishes.also)
        .copied()
        .filter(|network| !is_always_local(network))
        .collect();
    let covers = |include: &BTreeSet<IpNet>, network: Ipv4Net| {
        include.iter().any(|it| it.contains(&IpNet::V4(network)))
    };
    let own = local.own.iter().map(|address| Ipv4Net::from(*address));
    let exclude: BTreeSet<IpNet> = never()
        .chain(own)
        .chain(links.iter().map(|link| link.network))
        .filter(|network| covers(&include, *network))
        .map(IpNet::V4)
        .chain(wishes.never.iter().copied())
        .chain(wishes.api_server.iter().copied())
        .collect();
    // A network in both is excluded anyway; disjoint lists are easier to read.
    include.retain(|network| !exclude.contains(network));

    let notices = notices(networks, wishes, local, &links);

    Decision {
        include: include.into_iter().collect(),
        exclude: exclude.into_iter().collect(),
        notices,
    }
}

fn notices(networks: &[IpNet], wishes: &Wishes, local: &Local, links: &[&Link]) -> Vec<String> {
    let asked = || networks.iter().chain(&wishes.also);
    let is_covered = |network: Ipv4Net| asked().any(|it| it.contains(&IpNet::V4(network)));
    let is_settled = |network: IpNet| {
        is_always_local(&network)
            || [&wishes.never, &wishes.also]
                .iter()
                .any(|named| named.contains(&network))
            || wishes.never.iter().any(|never| never.contains(&network))
    };
    let mut notices: Vec<String> = networks
        .iter()
        .filter_map(|network| {
            let never = wishes.never.iter().find(|never| never.contains(network))?;
            Some(format!(
                "{network} of the cluster is left alone, as `--never-proxy {never}` has it"
            ))
        })
        .take(MAX_NOTICES)
        .collect();

    let own: Vec<String> = local
        .own
        .iter()
        .filter(|address| is_covered(Ipv4Net::from(**address)))
        .filter(|address| !is_settled(IpNet::from(IpAddr::V4(**address))))
        .map(ToString::to_string)
        .collect();
    if !own.is_empty() {
        notices.push(format!(
            "{} of this machine itself {} in the cluster's networks: never steered",
            list(&own),
            if own.len() == 1 { "is" } else { "are" },
        ));
    }
    let mut of_links = Vec::new();
    for link in links {
        let Link { network, interface } = link;
        if is_covered(*network) && !is_settled((*network).into()) {
            of_links.push(format!(
                "{network} is directly connected ({interface}) and in the cluster's networks: it \
                 is left alone; `--also-proxy {network}` leads it to the cluster"
            ));
        }
        for inner in networks.iter().filter(|inner| within(inner, network)) {
            if *inner != IpNet::V4(*network) && !is_settled(*inner) {
                of_links.push(format!(
                    "{inner} of the cluster lies in {network}, which is directly connected \
                     ({interface}): it is left alone; `--also-proxy {inner}` leads it to the \
                     cluster"
                ));
            }
        }
    }
    append(&mut notices, of_links, "directly connected networks");
    let of_routes = local
        .routed
        .iter()
        .filter(|route| {
            let network = IpNet::V4(route.network);
            networks.iter().any(|it| it.contains(&network)) && !is_settled(network)
        })
        .map(|Link { network, interface }| {
            format!(
                "{network}, which has a route through {interface}, is in the cluster's networks: \
                 it is steered; `--never-proxy {network}` leaves it to {interface}"
            )
        })
        .collect();
    append(&mut notices, of_routes, "networks with routes");

    notices
}

/// A sentence about the machine's and the cluster's networks that overlap with the networks
/// `aliases`; empty without an overlap.
pub fn collisions(aliases: &[Ipv4Net], networks: &[IpNet], local: &Local) -> Vec<String> {
    let collides = |network: &Ipv4Net| {
        aliases
            .iter()
            .any(|aliases| aliases.contains(network) || network.contains(aliases))
    };
    let mut of_machine: Vec<String> = local
        .connected
        .iter()
        .chain(&local.routed)
        .filter(|link| collides(&link.network))
        .map(|Link { network, interface }| format!("{network} ({interface})"))
        .collect();
    of_machine.extend(
        local
            .own
            .iter()
            .filter(|address| collides(&Ipv4Net::from(**address)))
            .map(ToString::to_string),
    );
    of_machine.dedup();
    let of_cluster = networks.iter().filter_map(|network| match network {
        IpNet::V4(network) if collides(network) => Some(format!("{network} (the cluster)")),
        _ => None,
    });
    let all: Vec<String> = of_machine.into_iter().chain(of_cluster).collect();
    if all.is_empty() {
        return Vec::new();
    }

    vec![format!(
        "{} came to use addresses that this session uses for its own ends: programs do not reach \
         them there; `tp quit` and `tp connect` take others",
        list(&all)
    )]
}

fn append(notices: &mut Vec<String>, mut more: Vec<String>, what: &str) {
    more.dedup();
    let surplus = more.len().saturating_sub(MAX_NOTICES);
    notices.extend(more.into_iter().take(MAX_NOTICES));
    if surplus > 0 {
        notices.push(format!("the same holds for {surplus} more {what}"));
    }
}

fn list(words: &[String]) -> String {
    let surplus = words.len().saturating_sub(MAX_NOTICES);
    let shown = words[..words.len() - surplus].join(", ");
    if surplus > 0 {
        format!("{shown} and {surplus} more")
    } else {
        shown
    }
}

fn within(network: &IpNet, outer: &Ipv4Net) -> bool {
    IpNet::V4(*outer).contains(network)
}

/// The network in the family that it is of: IPv4 has a mapped form in IPv6 (RFC 4291 section 2.5.5.2).
pub(crate) fn canonical(network: &IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;

    let network = network.trunc();
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(v6), IpAddr::V4(v4)) if v6.prefix_len() >= MAPPED_BITS => {
            IpNet::new_assert(v4.into(), v6.prefix_len() - MAPPED_BITS)
        }
        _ => network,
    }
}

fn never() -> impl Iterator<Item = Ipv4Net> {
    NEVER_STEERED
        .into_iter()
        .filter_map(|network| match network {
            IpNet::V4(network) => Some(network),
            IpNet::V6(_) => None,
        })
}

#[cfg(test)]
mod tests;

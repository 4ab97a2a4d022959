//! Packets between a session and the root daemon: JSON over a unix SOCK_SEQPACKET socket, one
//! request and one reply per packet, file descriptors by SCM_RIGHTS.
//!
//! The connection is the lease: when it closes, the root daemon drops everything it made for it.

use std::net::{Ipv4Addr, SocketAddr};

use std::ffi::CStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where the root daemon listens.
pub const SOCKET_PATH: &str = "/run/tp/root.sock";

/// The name of the processes of sessions and root daemons. No session steers sockets of such a
/// process, whoever started it.
pub const PROCESS_NAME: &CStr = c"tp-daemon";

/// Largest packet either side accepts, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Networks that a session may have steered and excluded, together.
pub const MAX_NETWORKS: usize = 16 * 1024;

/// Networks in one packet, so that it is no larger than [`MAX_PACKET`] whatever they are.
pub const MAX_NETWORKS_PER_PACKET: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Allowed to every peer that may connect.
    Hello {
        version: String,
        /// A session is about to need the root daemon. One that ends with the last session ends
        /// when the last peer that said so has gone, whether the session came or not.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        connects: bool,
    },
    /// Make the bundle of this session. Carries one descriptor: the session's network namespace
    /// (an open `/proc/self/ns/net`). At most one bundle per connection, ever.
    Open(OpenBundle),
    /// Replace the steered networks by these and those of the parts before. Needs an open bundle.
    Steer(Steer),
    /// A part of the networks of the next [`Request::Steer`], where one packet does not hold all.
    SteerPart(Steer),
    /// Replace the name servers whose port 53 is steered. Needs an open bundle.
    NameServers { servers: Vec<SocketAddr> },
    /// Counters of the bundle.
    Counters,
    /// Drop the bundle and reply once the machine is as before. (Closing the socket does the same.)
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBundle {
    pub scope: Scope,
    /// Networks that the aliases must not be of, beside those that the machine knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<IpNet>,
}

/// Whose sockets are steered; always only in the session's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Sockets of the peer's own user without gained privileges.
    User,
    /// Sockets of the peer's own user in this cgroup v2 directory (or below), which must be
    /// writable by that user.
    Cgroup { path: String },
    /// Every socket. Root only.
    System,
}

/// Destination networks to steer. The longest match wins; on a tie `exclude` does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    pub include: Vec<IpNet>,
    pub exclude: Vec<IpNet>,
    /// How many parts went before that belong to it; others are forgotten.
    #[serde(default, skip_serializing_if = "is_none")]
    pub parts: u32,
}

fn is_none(parts: &u32) -> bool {
    *parts == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Hello {
        version: String,
        pid: u32,
        /// It was started for one user, and ends with that user's last session.
        #[serde(default)]
        ends_with_last_session: bool,
    },
    /// Carries five descriptors, in this order: TCP listener, UDP socket (both inside the private
    /// namespace), TUN, alias table, heartbeat (both maps to be mapped shared).
    Opened(Bundle),
    Done,
    Counters(Counters),
    /// A sentence, and the kind that the session passes on.
    Refused {
        kind: RefusedKind,
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedKind {
    /// The request makes no sense here.
    Invalid,
    /// The peer may not do this.
    Permission,
    /// The kernel or the machine lacks something.
    Unsupported,
    Failed,
}

/// What the session needs to know about its bundle.
///
/// The alias table is an array of `alias_count` u32: element `i` is the real IPv4 address (network
/// byte order) behind `alias_base + i`, 0 if the alias is free. The heartbeat is one u64: the
/// session writes CLOCK_BOOTTIME nanoseconds at least every 500 ms; port 53 passes unsteered when
/// it is older than 2 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub alias_base: Ipv4Addr,
    pub alias_count: u32,
    /// Source address that the workstation's side of the veth uses.
    pub host_address: Ipv4Addr,
    pub mtu: u32,
    /// Attached programs, as status shows them: "cgroup/connect4".
    pub hooks: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets dropped, by reason.
    pub drops: Vec<(String, u64)>,
    /// Sockets that met a steered network and were not steered, by reason.
    pub not_steered: Vec<(String, u64)>,
    pub aliases: u64,
    pub steered: u64,
}

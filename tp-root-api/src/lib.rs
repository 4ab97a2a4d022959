//! Requests to the root daemon and their replies, and the one piece of code that frames them
//! ([`wire`]): JSON over a unix SOCK_SEQPACKET socket, one request and one reply per packet, file
//! descriptors by SCM_RIGHTS.
//!
//! The connection is the lease: when it closes, the root daemon drops everything it made for it.
//! Programs one minor version apart read each other's packets: fields are added, never given
//! another meaning.

#![forbid(unsafe_code)]

use std::{
    ffi::CStr,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::{Deserialize, Serialize};

pub mod wire;

/// Where the root daemon listens.
pub const SOCKET_PATH: &str = "/run/tp/root.sock";

/// The variable that names another place to listen.
pub const SOCKET_VARIABLE: &str = "TP_ROOT_SOCKET";

/// Where this process finds the root daemon: `$TP_ROOT_SOCKET`, or [`SOCKET_PATH`].
pub fn socket_path() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

/// The name that the processes of sessions and root daemons take (comm in proc(5)), of every
/// version. No session steers sockets of such a process, whoever started it.
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
    /// Make the data path of this session. Carries one descriptor: the session's network namespace
    /// (an open `/proc/self/ns/net`). At most one data path per connection, ever.
    Open(OpenDatapath),
    /// Replace the steered networks by these and those of the parts before. Needs a data path.
    Steer(Steer),
    /// A part of the networks of the next [`Request::Steer`], where one packet does not hold all.
    SteerPart(Steer),
    /// Replace the name servers whose port 53 is steered. Needs a data path.
    NameServers { servers: Vec<SocketAddr> },
    /// Counters of the data path.
    Counters,
    /// Drop the data path and reply once the machine is as before. (Closing the socket does the same.)
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDatapath {
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
    /// Carries [`Descriptors`].
    Opened(Datapath),
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

/// What the session needs to know about its data path.
///
/// The alias table is an array of `alias_count` u32: element `i` is the real IPv4 address (network
/// byte order) behind `alias_base + i`, 0 if the alias is free. The heartbeat is one u64: the
/// session writes CLOCK_BOOTTIME nanoseconds at least every 500 ms; port 53 passes unsteered when
/// it is older than 2 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    pub alias_base: Ipv4Addr,
    pub alias_count: u32,
    /// Source address that the workstation's side of the veth uses.
    pub host_address: Ipv4Addr,
    pub mtu: u32,
    /// Attached programs, as status shows them: "cgroup/connect4".
    pub hooks: Vec<String>,
}

/// Counters of a data path, since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets dropped, by reason; see [`DropReason`].
    pub drops: Vec<(String, u64)>,
    /// Sockets that met a steered network and were not steered, by reason.
    pub not_steered: Vec<(String, u64)>,
    pub aliases: u64,
    pub steered: u64,
}

/// A reason in [`Counters::drops`] that a session acts upon. There are others, which it only shows:
/// reasons are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The packet left the workstation by the data path's interface, from a socket that was not
    /// steered.
    ForeignSocket,
    /// The packet went to a socket of the workstation that was not steered.
    Unasked,
}

impl DropReason {
    /// Every reason that is known here.
    pub const ALL: [Self; 2] = [Self::ForeignSocket, Self::Unasked];

    /// The name on the wire, where it never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForeignSocket => "foreign_socket",
            Self::Unasked => "unasked",
        }
    }

    /// `None` for a reason that is not known here.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// What the session serves, of the private namespace that root made for it.
#[derive(Debug)]
pub struct Descriptors {
    /// Listens for TCP connections to aliases.
    pub listener: OwnedFd,
    /// Receives queries to name servers.
    pub udp: OwnedFd,
    pub tun: OwnedFd,
    /// A map to be mapped into memory, shared; see [`Datapath`].
    pub alias_table: OwnedFd,
    /// Another one.
    pub heartbeat: OwnedFd,
}

impl Counters {
    /// The packets dropped for `reason`; `None` if the root daemon does not count them.
    pub fn dropped(&self, reason: DropReason) -> Option<u64> {
        let found = self.drops.iter().find(|it| it.0 == reason.name())?;

        Some(found.1)
    }
}

impl Descriptors {
    /// In the order of the protocol.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 5] {
        let Self {
            listener,
            udp,
            tun,
            alias_table,
            heartbeat,
        } = self;

        [listener, udp, tun, alias_table, heartbeat].map(AsFd::as_fd)
    }

    /// `None` unless these are as many as there are fields.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Option<Self> {
        let [listener, udp, tun, alias_table, heartbeat] = <[OwnedFd; 5]>::try_from(fds).ok()?;

        Some(Self {
            listener,
            udp,
            tun,
            alias_table,
            heartbeat,
        })
    }
}

//! Requests to the root daemon and their replies, framed by [`wire`]: JSON over a unix SOCK_SEQPACKET socket, one request and one reply per packet, file
//! descriptors by SCM_RIGHTS.
//!
//! The connection is the lease: when it closes, the root daemon drops everything it made for it.
//! Programs of one [`PROTOCOL`] read each other's packets: fields are added, never given another
//! meaning.
//!
//! ```no_run
//! use rustix::net::SocketFlags;
//! use tp_root_api::{MAX_PACKET, PROTOCOL, Reply, Request, socket_path, wire};
//!
//! let socket = wire::socket(SocketFlags::empty())?;
//! wire::connect(&socket, &socket_path())?;
//! let hello = Request::Hello { version: "0.1.0".into(), protocol: PROTOCOL, connects: false };
//! wire::send(&socket, &hello, &[])?;
//!
//! let mut buffer = vec![0; MAX_PACKET];
//! let packet = wire::receive(&socket, &mut buffer)?;
//! match serde_json::from_slice(packet.bytes)? {
//!     Reply::Hello { version, pid, .. } => println!("version {version}, process {pid}"),
//!     reply => eprintln!("{reply:?}"),
//! }
//! # Ok::<_, std::io::Error>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{
    ffi::CStr,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::{Deserialize, Serialize};

pub use tp_packet::{self as wire, MAX_PACKET};

/// Where the root daemon listens.
pub const SOCKET_PATH: &str = "/run/tp/root.sock";

/// The environment variable with another path for the socket.
pub const SOCKET_VARIABLE: &str = "TP_ROOT_SOCKET";

/// The path of the socket for this process: `$TP_ROOT_SOCKET`, or [`SOCKET_PATH`].
pub fn socket_path() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

/// The process name (comm in proc(5)) of sessions and root daemons of every version. No session steers
/// sockets of such a process, whoever started it.
pub const PROCESS_NAME: &CStr = c"tp-daemon";

/// Version of the requests and replies described here. A session is served by a root daemon of the
/// same version; [`Request::Hello`] and its reply never change.
pub const PROTOCOL: u32 = 2;

/// Networks in one packet at most: any of them fit into [`MAX_PACKET`] bytes.
pub const MAX_NETWORKS_PER_PACKET: usize = 1024;

/// Overlaps in one reply at most.
pub const MAX_OVERLAPS: usize = 64;

/// A request of a peer. Each is answered by one [`Reply`], in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Allowed to every peer that may connect. Answered by [`Reply::Hello`].
    Hello {
        /// The version of the peer, as `tp --version` has it.
        version: String,
        /// [`PROTOCOL`] of the peer.
        #[serde(default = "first_protocol")]
        protocol: u32,
        /// A session is about to connect: the root daemon begins to load its programs. One that ends
        /// with its last session also ends when the last such peer has gone and no session came.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        connects: bool,
    },
    /// Make the data path of this session. Carries one descriptor: the session's network namespace
    /// (an open `/proc/self/ns/net`). At most one data path per connection, ever. Answered by
    /// [`Reply::Opened`].
    Open(OpenDatapath),
    /// Change the steered networks. Needs a data path. Takes effect at once: whatever takes several
    /// packets begins with what is excluded, so that no wider network steers it for a moment.
    Steer(Steer),
    /// Replace the name servers whose port 53 is steered. Needs a data path.
    NameServers {
        /// At most 64, each with port 53.
        servers: Vec<SocketAddr>,
    },
    /// Counters of the data path. Needs one. Answered by [`Reply::Counters`].
    Counters,
    /// What other sessions of the same scope have of this one's networks and name servers, which
    /// changes when they come and go. Needs a data path. Answered by [`Reply::Overlaps`].
    Overlaps,
    /// Show the client of an intercepted connection, instead of the session, to the local process that
    /// a socket is about to connect to: accept(2) and getpeername(2) there tell `client`. Only to
    /// processes and sockets of the session's user, in its network namespace, and only while the socket
    /// and the data path live. Carries one descriptor: that socket, for TCP, which connects from the
    /// very address that it connects to. Needs a data path, and [`Datapath::shows_clients`].
    ShowClient {
        /// Of the family of the socket; another one is not shown.
        client: SocketAddr,
    },
    /// Drop the data path and reply once the machine is as before. (Closing the socket does the same.)
    Close,
}

/// What a data path is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDatapath {
    /// Whose sockets are steered.
    pub scope: Scope,
    /// Steer UDP to the networks as well, not only to name servers: the session answers it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub udp: bool,
    /// Networks that the aliases must avoid, besides those that the machine knows.
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
    Cgroup {
        /// The absolute path of the directory, below the mount of the hierarchy.
        path: String,
    },
    /// Every socket. Root only.
    System,
}

/// A change of the networks of a session, which has none at first. The longest match decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    /// Networks to steer from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<IpNet>,
    /// Networks to leave alone from now on, also if they are in `include`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<IpNet>,
    /// Networks of which the session says nothing any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<IpNet>,
}

/// A network or name server of a session that another one has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The network, or the address of the name server.
    pub network: IpNet,
    /// It is about port 53 alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_name_server: bool,
    /// The process of the session that has it, as the PID namespace of the root daemon numbers it.
    pub pid: u32,
}

fn first_protocol() -> u32 {
    1
}

/// The answer to one [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Who the root daemon is.
    Hello {
        /// The version of the root daemon, as `tp --version` has it.
        version: String,
        /// [`PROTOCOL`] of the root daemon.
        #[serde(default = "first_protocol")]
        protocol: u32,
        /// Its pid in its own PID namespace.
        pid: u32,
        /// It was started for one user, and ends with that user's last session.
        #[serde(default)]
        ends_with_last_session: bool,
    },
    /// The data path was made. Carries [`Descriptors`].
    Opened(Datapath),
    /// The request was carried out.
    Done,
    /// The counters of the data path.
    Counters(Counters),
    /// What the session does not get.
    Overlaps {
        /// At most [`MAX_OVERLAPS`]; there may be more.
        overlaps: Vec<Overlap>,
    },
    /// The request was not carried out.
    Refused {
        /// The kind of fault that the session passes on.
        kind: RefusedKind,
        /// One sentence for a person: what failed, which thing, what to do.
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedKind {
    /// The request makes no sense here.
    Invalid,
    /// The peer may not do this.
    Permission,
    /// The kernel or the machine lacks something.
    Unsupported,
    /// Something else failed.
    Failed,
}

/// What the session needs to know about its data path.
///
/// The alias table is an array of `alias_count` addresses of 16 bytes in network order, IPv4 in its
/// mapped form (RFC 4291 section 2.5.5.2): element `i` is the real address behind the aliases
/// `alias_base + i` and `alias_base6 + i`, 0 if they never stood for one. The heartbeat is one
/// u64: the session writes CLOCK_BOOTTIME nanoseconds at least every 500 ms; port 53 passes
/// unsteered when it is older than 2 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// The first of the IPv4 aliases, a multiple of 65536.
    pub alias_base: Ipv4Addr,
    /// The first of the IPv6 aliases, a multiple of 65536. They are reserved: no IPv6 socket
    /// receives one yet.
    pub alias_base6: Ipv6Addr,
    /// The number of aliases: a power of two, at most 65536.
    pub alias_count: u32,
    /// The source address that the workstation's side of the veth uses.
    pub host_address: Ipv4Addr,
    /// The same for IPv6, reserved too.
    pub host_address6: Ipv6Addr,
    /// The largest IP packet of the veth, in bytes.
    pub mtu: u32,
    /// The hooks of attached programs, as status shows them: "cgroup/connect4".
    pub hooks: Vec<String>,
    /// The root daemon knows [`Request::ShowClient`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shows_clients: bool,
}

/// Counters of a data path, since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets dropped, by reason; see [`DropReason`].
    pub drops: Vec<(String, u64)>,
    /// Sockets that met a steered network and were not steered, by reason.
    pub not_steered: Vec<(String, u64)>,
    /// Aliases that stand for an address, in use or in quarantine.
    pub aliases: u64,
    /// Sockets, and datagrams to name servers, that received an alias.
    pub steered: u64,
}

/// A reason in [`Counters::drops`] that a session acts upon. It only shows the others, which newer
/// versions may add.
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

    /// The name on the wire, which never changes.
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

/// The session's descriptors of the private namespace that root made for it.
#[derive(Debug)]
pub struct Descriptors {
    /// Listens for TCP connections to aliases.
    pub listener: OwnedFd,
    /// Receives queries to name servers.
    pub udp: OwnedFd,
    /// The TUN, whose packets are whole IPv4 packets: held SYNs to read, answers to write.
    pub tun: OwnedFd,
    /// The map of the alias table, for a shared mapping to read (mmap(2)); see [`Datapath`].
    pub alias_table: OwnedFd,
    /// The map of the heartbeat, for a shared mapping to write (mmap(2)); see [`Datapath`].
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
    /// The descriptors in the order of the protocol.
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

    /// Takes the descriptors in the order of the protocol; `None` unless there is one for each field.
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn descriptors_are_five_or_none() {
        let five = Vec::from_iter((0..5).map(|_| descriptor()));

        assert!(Descriptors::from_fds(five).is_some());
        assert!(Descriptors::from_fds(vec![descriptor()]).is_none());
        assert!(Descriptors::from_fds(Vec::new()).is_none());
    }
}

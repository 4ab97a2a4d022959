//! Requests of `tp-agent`, which has no capability, to `tp-agentd`, which has, and their replies: one
//! request and one reply per packet of [`tp_packet`], in order.
//!
//! The connection is the lease: when it closes, all redirects that were made for it end. Both programs
//! are of one image; fields are added, never given another meaning.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use rustix::net::SocketFlags;
//! use tp_agent_api::{AgentReply, AgentRequest, PROTOCOL};
//! use tp_packet::{MAX_PACKET, connect, receive, send, socket};
//!
//! let socket = socket(SocketFlags::empty())?;
//! connect(&socket, Path::new("/run/tp-agent/agentd.sock"))?;
//! let hello = AgentRequest::Hello { version: "0.1.0".into(), protocol: PROTOCOL };
//! send(&socket, &hello, &[])?;
//!
//! let mut buffer = vec![0; MAX_PACKET];
//! let packet = receive(&socket, &mut buffer)?;
//! match serde_json::from_slice(packet.bytes)? {
//!     AgentReply::Hello { version, .. } => println!("version {version}"),
//!     reply => eprintln!("{reply:?}"),
//! }
//! # Ok::<_, std::io::Error>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::net::IpAddr;

use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};

/// Version of the requests and replies described here. [`AgentRequest::Hello`] and its reply never
/// change.
pub const PROTOCOL: u32 = 1;

/// Redirected ports of one pod at most.
pub const MAX_PORTS: usize = 64;
/// Addresses of the node at most.
pub const MAX_NODES: usize = 64;
/// Addresses of a pod at most.
pub const MAX_POD_ADDRESSES: usize = 16;
/// Containers that one request names at most.
pub const MAX_CONTAINERS: usize = 64;
/// Redirects of one connection at most: more than a node has pods.
pub const MAX_REDIRECTS: usize = 512;
/// Peers of earlier connections that a reply names for each port, at most.
pub const MAX_EARLIER_PEERS: usize = 4;
/// The largest environment that is handed out, in bytes.
pub const MAX_ENVIRON: usize = 256 << 10;

/// A request. Each is answered by one [`AgentReply`], in order; [`AgentReply::Refused`] answers any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum AgentRequest {
    /// Who are you? Answered by [`AgentReply::Hello`]. It is the first request; those after it are
    /// refused if the protocols differ.
    Hello {
        /// The version of the agent.
        version: String,
        /// [`PROTOCOL`] of the agent.
        protocol: u32,
    },
    /// Redirect ports of a pod. Answered by [`AgentReply::Redirected`]. A redirect of the same pod that
    /// an earlier connection has ends before.
    Redirect {
        /// The pod.
        pod: PodIds,
        /// All ports, at most [`MAX_PORTS`].
        ports: Vec<RedirectedPort>,
        /// The addresses from which the kubelet probes, at most [`MAX_NODES`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        nodes: Vec<IpAddr>,
    },
    /// Set all ports of a redirect; those that stay keep their leases and counters. Answered by
    /// [`AgentReply::Changed`].
    Ports {
        /// The number of the redirect.
        redirect: u64,
        /// All ports, at most [`MAX_PORTS`].
        ports: Vec<RedirectedPort>,
        /// The addresses from which the kubelet probes, at most [`MAX_NODES`]; `None`: they stay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nodes: Option<Vec<IpAddr>>,
    },
    /// End a redirect: the program has gone when this is answered, by [`AgentReply::Done`]. The agent
    /// then accepts what its listeners still hold, and closes them.
    Release {
        /// The number of the redirect.
        redirect: u64,
    },
    /// Where connections to the ports of a redirect went. Answered by [`AgentReply::Counters`].
    Counters {
        /// The number of the redirect.
        redirect: u64,
    },
    /// Connections to the ports of a redirect that the container has, and that the program would not
    /// leave to it if they were new. Answered by [`AgentReply::Earlier`].
    Earlier {
        /// The number of the redirect.
        redirect: u64,
        /// Of these ports they are reset first, but not all at once if there are many.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        end: Vec<u16>,
    },
    /// Make a TCP socket in the network namespace of a pod, to reach its container. Answered by
    /// [`AgentReply::Socket`], with the socket.
    Socket {
        /// The number of the redirect.
        redirect: u64,
        /// A socket for IPv6 alone, not one for IPv4.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ipv6: bool,
    },
    /// Read the environment of a container's first process. Answered by [`AgentReply::Environ`], with a
    /// sealed file that holds it.
    Environ {
        /// The UID of the pod.
        uid: String,
        /// The id of the container.
        container: String,
    },
}

/// How a pod is found among the processes of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIds {
    /// The UID, as the kubelet has it: of a static pod that is the value of the annotation
    /// `kubernetes.io/config.mirror`.
    pub uid: String,
    /// The ids of its running containers, without the name of the runtime: 64 hexadecimal digits.
    /// At least one, at most [`MAX_CONTAINERS`].
    pub containers: Vec<String>,
    /// The addresses of the pod, at most [`MAX_POD_ADDRESSES`], by which its network is told from those that a container has made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// A port of a pod, to be redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectedPort {
    /// Its number.
    pub port: u16,
    /// The kubelet probes it by TCP or gRPC: connections from addresses of the node are left to the
    /// container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probed: bool,
}

/// The answer to one [`AgentRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum AgentReply {
    /// Who answers.
    Hello {
        /// The version of `tp-agentd`.
        version: String,
        /// Its [`PROTOCOL`].
        protocol: u32,
    },
    /// The ports are redirected as soon as their leases are given. Carries [`RedirectFds`].
    Redirected {
        /// The number of the redirect, for further requests.
        redirect: u64,
        /// The lease of each port.
        leases: Vec<PortLease>,
    },
    /// The ports were set.
    Changed {
        /// The lease of each port.
        leases: Vec<PortLease>,
    },
    /// The request was carried out.
    Done,
    /// The counters of each port, since it was redirected.
    Counters {
        /// One for each port.
        ports: Vec<PortCounters>,
    },
    /// The connections that the container has.
    Earlier {
        /// One for each port.
        ports: Vec<EarlierConnections>,
        /// Why some were not ended that should have been, as a sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        obstacle: Option<String>,
        /// Some are left that the same request may end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// The socket was made. Carries it; it does not block.
    Socket,
    /// The environment was read. Carries a sealed file in memory.
    Environ {
        /// Each entry has a name and `=`: the process has not written over it, as nginx and PostgreSQL
        /// do.
        intact: bool,
    },
    /// The request was not carried out.
    Refused {
        /// Which kind of reason.
        kind: AgentRefusal,
        /// One sentence for a person: what failed, which thing, what to do.
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentRefusal {
    /// The request makes no sense.
    Invalid,
    /// The pod, or its container, does not run on this node.
    NotFound,
    /// The pod or the kernel is of a kind that cannot be redirected.
    Unsupported,
    /// Something else failed.
    Failed,
}

/// Where the lease of a port is in the table of leases.
///
/// The table is an array of [`MAX_PORTS`] elements of 16 bytes, in the machine's byte order: a u64, the
/// CLOCK_BOOTTIME nanoseconds at which the lease was renewed, and a u32, a [`LeaseState`]; the rest is
/// zero. A lease is over five seconds after it was renewed, and the container serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortLease {
    /// The port.
    pub port: u16,
    /// The index of its element.
    pub index: u32,
}

/// What a port does while its lease lasts.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// The container serves.
    Container = 0,
    /// Connections go to the listener.
    Redirect = 1,
    /// Connections are refused, as a port without a listener does.
    Refuse = 2,
}

/// Where connections to a port went. A SYN that is sent again counts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// The port.
    pub port: u16,
    /// To the listener.
    pub redirected: u64,
    /// To the container, without a lease.
    pub lease_over: u64,
    /// To the container, whose lease said so.
    pub container: u64,
    /// To the container, from the pod itself.
    pub exempt: u64,
    /// To the container, from an address of the node to a probed port.
    pub probes: u64,
    /// Refused.
    pub refused: u64,
    /// Not as the lease says: to the container, because there is no listener of that family, or to what
    /// another program of the pod's network chose, instead of refused.
    #[serde(default)]
    pub elsewhere: u64,
}

/// Connections to a port that the container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierConnections {
    /// The port.
    pub port: u16,
    /// How many there are.
    pub count: u64,
    /// From where, those with the most first: at most [`MAX_EARLIER_PEERS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<EarlierPeer>,
    /// How many were reset.
    #[serde(default)]
    pub ended: u64,
}

/// Who has connections to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierPeer {
    /// The address, of IPv4 as such.
    pub address: IpAddr,
    /// How many.
    pub count: u64,
}

/// What comes with [`AgentReply::Redirected`].
#[derive(Debug)]
pub struct RedirectFds {
    /// Accepts connections over IPv4. Does not block. The port that was meant is the local one of the
    /// accepted socket.
    pub listener4: OwnedFd,
    /// The same for IPv6; `None` if the kernel has none.
    pub listener6: Option<OwnedFd>,
    /// The table of leases, for a shared mapping to write (mmap(2)); see [`PortLease`].
    pub leases: OwnedFd,
}

impl RedirectFds {
    /// The descriptors in the order of the protocol.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        let Self {
            listener4,
            listener6,
            leases,
        } = self;

        [leases, listener4].into_iter().chain(listener6).collect()
    }

    /// Takes the descriptors in the order of the protocol; `None` unless there are two or three.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let (leases, listener4) = (fds.next()?, fds.next()?);
        let listener6 = fds.next();

        fds.next().is_none().then_some(Self {
            listener4,
            listener6,
            leases,
        })
    }
}

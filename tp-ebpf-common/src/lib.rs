//! What the eBPF programs and their loader share: settings, map layouts and counters.
//!
//! Addresses and ports are byte arrays in network order; no type has padding.
//!
//! ```
//! use tp_ebpf_common::{Counter, CounterKind, mapped};
//!
//! let unasked = Counter::Unasked;
//! assert_eq!((unasked.name(), unasked.kind()), ("unasked", CounterKind::Drop));
//!
//! assert_eq!(mapped([10, 96, 0, 10])[10..], [0xff, 0xff, 10, 96, 0, 10]);
//! ```

#![no_std]
#![warn(missing_docs)]

mod address;
mod alias;
mod client;
mod counter;
#[cfg(feature = "user")]
mod pod;
mod redirect;
mod session;
mod settings;
mod steer;

pub use address::{ADDRESS_BITS, Address, mapped, unmapped};
pub use alias::AliasUse;
pub use client::ShownClient;
pub use counter::{Counter, CounterKind};
pub use redirect::{
    LEASE_OVER_AFTER_NS, Lease, MAX_NODE_ADDRESSES, MAX_OWN_ADDRESSES, MAX_POD_PORTS,
    POD_LISTENER4, POD_LISTENER6, POD_LISTENERS, PodCounter, PodPort, PortState, pod_port_flags,
};
pub use session::{
    MAX_CGROUP_LEVELS, MAX_PER_SCOPE, MAX_SESSIONS, Mark, ScopeKey, ScopeSessions, SessionEntry,
    session_flags,
};
pub use settings::{HEARTBEAT_STALE_AFTER_NS, KernelOffsets, ProcessName, Settings};
pub use steer::{CandidateKey, Direction, GuardKey, GuardRule, NameServer, SteerAction};

/// The number of elements of a session's alias table, whatever part of it the session uses.
pub const ALIAS_TABLE_LEN: usize = 65536;

/// The first index that is given out: the first /24 of the aliases stays free for addresses that
/// must not be mistaken for a cluster address.
pub const FIRST_ALIAS_INDEX: u32 = 256;

/// The sockets of each session in the map that `sk_lookup` reads.
pub const SOCKETS_PER_SESSION: u32 = 2;
/// The first of them: the listener for TCP.
pub const LISTENER: u32 = 0;
/// The second one: the socket for UDP.
pub const UDP_SOCKET: u32 = 1;

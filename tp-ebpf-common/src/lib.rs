//! What the eBPF programs and their loader share: settings, map layouts and counters.
//!
//! Addresses and ports are byte arrays in network order; no type has padding.
//!
//! ```
//! use tp_ebpf_common::{Counter, CounterKind, NameServer};
//!
//! let unasked = Counter::Unasked;
//! assert_eq!((unasked.name(), unasked.kind()), ("unasked", CounterKind::Drop));
//!
//! let server = NameServer::v4([10, 96, 0, 10], 53_u16.to_be_bytes());
//! assert_eq!(server.address[10..], [0xff, 0xff, 10, 96, 0, 10]);
//! ```

#![no_std]
#![warn(missing_docs)]

mod alias;
mod counter;
#[cfg(feature = "user")]
mod pod;
mod settings;
mod steer;

pub use alias::AliasUse;
pub use counter::{Counter, CounterKind};
pub use settings::{HEARTBEAT_STALE_AFTER_NS, KernelOffsets, ProcessName, Settings, scope};
pub use steer::{NameServer, SteerAction};

/// The number of elements of the alias table, whatever part of it a data path uses.
pub const ALIAS_TABLE_LEN: usize = 65536;

/// The first index that is given out: the first /24 of the aliases stays free for addresses that
/// must not be mistaken for a cluster address.
pub const FIRST_ALIAS_INDEX: u32 = 256;

/// The slot of the socket map that `sk_lookup` reads for TCP.
pub const LISTENER_SLOT: u32 = 0;
/// The slot of the socket map that `sk_lookup` reads for UDP.
pub const UDP_SLOT: u32 = 1;

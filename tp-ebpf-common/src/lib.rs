//! What the eBPF programs and their loader both know: settings, map layouts and counters.
//!
//! Addresses and ports are byte arrays in network order; no type has padding.

#![no_std]

mod alias;
mod counter;
#[cfg(feature = "user")]
mod pod;
mod settings;
mod steer;

pub use alias::AliasUse;
pub use counter::{Counter, CounterKind};
pub use settings::{HEARTBEAT_LIMIT_NS, KernelOffsets, ProcessName, Settings, scope};
pub use steer::{NameServer, SteerAction};

/// Elements of the alias table, whatever part of it a bundle uses.
pub const ALIAS_TABLE_LEN: usize = 65536;

/// Aliases below this index are never given out: the first /24 stays free for addresses that
/// must not be mistaken for a cluster address.
pub const FIRST_ALIAS_INDEX: u32 = 256;

/// Slots of the socket map that `sk_lookup` reads.
pub const LISTENER_SLOT: u32 = 0;
pub const UDP_SLOT: u32 = 1;

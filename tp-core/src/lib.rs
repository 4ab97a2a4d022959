//! Decisions of tp as values in and values out: which packet answers a held SYN, who answers a DNS
//! query, how long to wait before the next attempt.
//!
//! No I/O, no clock, no runtime: time comes in as an argument, packets and messages as bytes.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod credit;
pub mod dns;
pub mod framing;
pub mod keep_alive;
pub mod outside;
pub mod packet;
pub mod steering;
pub mod syn;
pub mod verdict;

/// Version of every program built from this workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

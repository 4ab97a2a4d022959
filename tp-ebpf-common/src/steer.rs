//! Keys and values of the maps that say what is steered.

use crate::Address;

/// Value of the longest prefix that matches a destination, for one session.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteerAction {
    /// Sockets to the destination are left alone.
    Exclude = 0,
    /// Sockets to the destination are steered.
    Include = 1,
}

/// The key of the map of candidates, of which the address may be a prefix: destinations of sockets
/// that some session may steer. All others are left alone at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateKey {
    /// The network namespace of the socket, as SO_NETNS_COOKIE tells it.
    pub netns: u64,
    /// The destination.
    pub address: Address,
}

impl CandidateKey {
    /// The length of `netns` in bits, with which each prefix begins.
    pub const NETNS_BITS: u32 = 64;
    /// The value where no session may steer; others are the slot of the first session that may.
    pub const NOBODY: u32 = u32::MAX;
}

/// A name server of a session, the key of the map of name servers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// The slot of the session.
    pub slot: u32,
    /// Its address.
    pub address: Address,
    /// In network order.
    pub port: [u8; 2],
    _zero: [u8; 2],
}

impl NameServer {
    /// The key for a session, an address and a port in network order.
    #[inline(always)]
    pub const fn new(slot: u32, address: Address, port: [u8; 2]) -> Self {
        Self {
            slot,
            address,
            port,
            _zero: [0; 2],
        }
    }
}

/// The direction of a packet through the veth of a session.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the workstation; its destination is looked up.
    ToCluster = 0,
    /// To the workstation; its source is looked up.
    FromCluster = 1,
}

/// The key of the map of guards, of which the address may be a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardKey {
    /// The slot of the session.
    pub slot: u32,
    /// A [`Direction`].
    pub direction: u32,
    /// The address at the far end.
    pub address: Address,
}

impl GuardKey {
    /// The length of `slot` and `direction` in bits, with which each prefix begins.
    pub const FIXED_BITS: u32 = 64;
}

/// Whose packets a guard lets pass; all others are dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardRule {
    /// Those of sockets that the session has steered.
    Steered = 1,
}

const _: () = assert!(size_of::<CandidateKey>() == 24);
const _: () = assert!(size_of::<NameServer>() == 24);
const _: () = assert!(size_of::<GuardKey>() == 24);

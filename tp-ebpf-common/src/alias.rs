//! The record of an alias's use, which is kept beside its address.

/// An element of the map `ALIAS_USES`, at the index of the alias.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliasUse {
    /// When a program last gave the alias to a socket, in units of 2^[`AliasUse::UNIT_BITS`] ns
    /// since boot (CLOCK_MONOTONIC_COARSE), from 1; 0 while the alias is fresh or free.
    pub handed_out: u32,
    /// Not 0: the alias must never stand for another address.
    pub is_pinned: u32,
}

impl AliasUse {
    /// The base-2 logarithm of the unit in nanoseconds: about a second.
    pub const UNIT_BITS: u32 = 30;
}

const _: () = assert!(size_of::<AliasUse>() == 8);

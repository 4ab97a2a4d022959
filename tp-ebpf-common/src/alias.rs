//! What is known of an alias beside the address behind it.

/// An element of the map beside the alias table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliasUse {
    /// When a program last gave it to a socket, in units of 2^[`AliasUse::UNIT_BITS`] ns since
    /// boot, from 1; 0 while it stands for nothing.
    pub handed_out: u32,
    /// Not 0: never to be given to another address.
    pub is_pinned: u32,
}

impl AliasUse {
    /// About a second.
    pub const UNIT_BITS: u32 = 30;
}

const _: () = assert!(size_of::<AliasUse>() == 8);

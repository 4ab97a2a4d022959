//! Addresses of both families in one form.

/// In network order; IPv4 in its mapped form (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
pub type Address = [u8; 16];

/// The length of an [`Address`] in bits.
pub const ADDRESS_BITS: u32 = 128;

/// The mapped form of an IPv4 address in network order.
#[inline(always)]
pub const fn mapped(address: [u8; 4]) -> Address {
    // As one number: from an array of bytes the eBPF compiler makes a store of each byte, which is
    // slow to read again as a word.
    (0xffff << 32 | u32::from_be_bytes(address) as u128).to_be_bytes()
}

/// The IPv4 address of a mapped one.
#[inline(always)]
pub const fn unmapped(address: Address) -> Option<[u8; 4]> {
    let number = u128::from_be_bytes(address);
    if number >> 32 == 0xffff {
        Some((number as u32).to_be_bytes())
    } else {
        None
    }
}

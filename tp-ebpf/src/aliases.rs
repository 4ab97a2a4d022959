//! The aliases that stand for real addresses.
//!
//! An alias is never given to another address while the bundle lives: 65280 addresses in one
//! session, then connects fail and are counted. Reuse needs a quarantine first.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::BPF_NOEXIST;
use tp_ebpf_common::{ALIAS_TABLE_LEN, Counter, FIRST_ALIAS_INDEX};

use crate::maps::{ALIAS_TABLE, ALIASES, NEXT_ALIAS, count, setting};

/// Returns the alias of `real`, both in network order.
#[inline(always)]
pub(crate) fn alias_of(real: [u8; 4]) -> Result<[u8; 4], Counter> {
    // SAFETY: entries are only ever added.
    let known = unsafe { ALIASES.get(&real) };
    let index = match known {
        Some(index) => *index,
        None => allocate(real)?,
    };

    Ok((setting!(alias_base) | index).to_be_bytes())
}

/// Returns the real address behind `alias`, if it is one.
#[inline(always)]
pub(crate) fn real_of(alias: [u8; 4]) -> Option<[u8; 4]> {
    let index = index_of(alias)?;
    let table = ALIAS_TABLE.get_ptr(0)?;
    // SAFETY: index_of keeps the index inside the table.
    let real = unsafe { core::ptr::read_volatile(table.cast::<u32>().add(index)) };

    (real != 0).then(|| real.to_ne_bytes())
}

#[inline(always)]
pub(crate) fn is_alias(address: [u8; 4]) -> bool {
    u32::from_be_bytes(address) & setting!(alias_mask) == setting!(alias_base)
}

#[inline(always)]
fn index_of(alias: [u8; 4]) -> Option<usize> {
    is_alias(alias)
        .then(|| (u32::from_be_bytes(alias) as usize) & (ALIAS_TABLE_LEN - 1))
        .map(|index| index & !(setting!(alias_mask) as usize))
}

#[inline(always)]
fn allocate(real: [u8; 4]) -> Result<u32, Counter> {
    let full = Counter::AliasTableFull;
    let next = NEXT_ALIAS.get_ptr_mut(0).ok_or(full)?;
    // Not relaxed: LLVM 22 then emits an addition that does not return the old value.
    // SAFETY: an aligned element of a live map; programs change it in this way only.
    let earlier = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(next, 1) };
    let taken = earlier + u64::from(FIRST_ALIAS_INDEX);
    if taken > u64::from(!setting!(alias_mask)) || taken >= ALIAS_TABLE_LEN as u64 {
        return Err(full);
    }
    let index = taken as u32;

    // The way back is published first: no socket ever sees an alias that cannot be reversed.
    let table = ALIAS_TABLE.get_ptr_mut(0).ok_or(full)?;
    // SAFETY: bounded above.
    unsafe {
        core::ptr::write_volatile(
            table.cast::<u32>().add(index as usize),
            u32::from_ne_bytes(real),
        );
    }
    if ALIASES.insert(&real, &index, BPF_NOEXIST.into()).is_ok() {
        count(Counter::Aliases);
        return Ok(index);
    }

    // Another CPU was faster; its index stands, ours stays unused.
    // SAFETY: entries are only ever added.
    unsafe { ALIASES.get(&real) }.copied().ok_or(full)
}

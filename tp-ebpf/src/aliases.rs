//! The aliases that stand for real addresses.
//!
//! The life cycle of an alias is drawn in `tp-core/src/alias.rs`. A program that removes an address
//! from `RESTING` owns its alias: one CPU, or else the root daemon, which frees it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};
use tp_ebpf_common::{ALIAS_TABLE_LEN, AliasUse, Counter, FIRST_ALIAS_INDEX};

use crate::maps::{ALIAS_TABLE, ALIAS_USES, ALIASES, FREE, NEXT_ALIAS, RESTING, count, setting};

/// Whether the kernel shows who still has an alias.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Tracking {
    /// Every socket that has it shows it as its peer.
    Peer,
    /// Nothing shows it, so the alias is never given to another address.
    Never,
}

/// Returns the alias of `real`, both in network order.
#[inline(always)]
pub(crate) fn alias_of(real: [u8; 4], tracking: Tracking) -> Result<[u8; 4], Counter> {
    let index = match known(real) {
        Some(index) => index,
        None => match revive(real) {
            Some(index) => index,
            None => allocate(real)?,
        },
    };
    note_use(index, tracking).ok_or(Counter::AliasTableFull)?;

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

/// Returns whether the alias is of a name server, present or past: only name servers get datagrams.
#[inline(always)]
pub(crate) fn is_of_name_server(alias: [u8; 4]) -> bool {
    is_pinned(alias).unwrap_or(false)
}

#[inline(always)]
fn is_pinned(alias: [u8; 4]) -> Option<bool> {
    let index = index_of(alias)?;
    let uses = ALIAS_USES.get_ptr(0)?.cast::<AliasUse>();
    // SAFETY: index_of keeps the index inside the table.
    let is_pinned = unsafe { core::ptr::read_volatile(&raw const (*uses.add(index)).is_pinned) };

    Some(is_pinned != 0)
}

#[inline(always)]
fn index_of(alias: [u8; 4]) -> Option<usize> {
    is_alias(alias)
        .then(|| (u32::from_be_bytes(alias) as usize) & (ALIAS_TABLE_LEN - 1))
        .map(|index| index & !(setting!(alias_mask) as usize))
}

/// The alias in use for `real`.
#[inline(always)]
fn known(real: [u8; 4]) -> Option<u32> {
    let entry = ALIASES.get_ptr(&real)?;
    // SAFETY: the memory of entries is not freed while a program runs.
    let index = unsafe { core::ptr::read_volatile(entry) };

    leads_to(index, real).then_some(index)
}

/// Returns whether the alias table has `real` at `index`. It has not if the kernel reused the memory
/// of a removed entry for another address while it was read.
#[inline(always)]
fn leads_to(index: u32, real: [u8; 4]) -> bool {
    let Some(table) = ALIAS_TABLE.get_ptr(0) else {
        return false;
    };
    let index = index as usize & (ALIAS_TABLE_LEN - 1);
    // SAFETY: bounded above.
    let found = unsafe { core::ptr::read_volatile(table.cast::<u32>().add(index)) };

    found == u32::from_ne_bytes(real)
}

/// Brings an alias in quarantine back into use.
#[inline(always)]
fn revive(real: [u8; 4]) -> Option<u32> {
    let entry = RESTING.get_ptr(&real)?;
    // SAFETY: as above.
    let index = unsafe { core::ptr::read_volatile(entry) };
    if !leads_to(index, real) || RESTING.remove(&real).is_err() {
        return None;
    }
    if ALIASES.insert(&real, &index, BPF_NOEXIST.into()).is_ok() {
        return Some(index);
    }
    // Another CPU took a new alias for the address; this one stays in quarantine.
    let _ = RESTING.insert(&real, &index, BPF_NOEXIST.into());

    known(real)
}

#[inline(always)]
fn allocate(real: [u8; 4]) -> Result<u32, Counter> {
    let full = Counter::AliasTableFull;
    let index = match fresh() {
        Some(index) => index,
        None => FREE.pop().ok().flatten().ok_or(full)? & (ALIAS_TABLE_LEN as u32 - 1),
    };

    // The reverse entry comes first: no socket ever sees an alias that cannot be reversed.
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

    // Another CPU was faster; its index is used, and nobody has seen ours.
    let _ = FREE.push(&index, 0);

    known(real).ok_or(full)
}

/// An alias that never stood for anything.
#[inline(always)]
fn fresh() -> Option<u32> {
    let next = NEXT_ALIAS.get_ptr_mut(0)?;
    // For a relaxed one LLVM 22 emits an addition that does not return the old value.
    // SAFETY: an aligned element of a live map; programs change it in this way only.
    let earlier = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(next, 1) };
    let taken = earlier + u64::from(FIRST_ALIAS_INDEX);
    let is_there = taken <= u64::from(!setting!(alias_mask)) && taken < ALIAS_TABLE_LEN as u64;

    is_there.then_some(taken as u32)
}

/// Notes the use for the root daemon, which quarantines the least recently used aliases.
#[inline(always)]
fn note_use(index: u32, tracking: Tracking) -> Option<()> {
    let uses = ALIAS_USES.get_ptr_mut(0)?.cast::<AliasUse>();
    let index = index as usize & (ALIAS_TABLE_LEN - 1);
    // SAFETY: bounded above.
    let entry = unsafe { uses.add(index) };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let now = (now >> AliasUse::UNIT_BITS) as u32 + 1;
    // SAFETY: aligned words of a live map. Most calls find them up to date, and leave the cache line
    // unmodified.
    unsafe {
        if core::ptr::read_volatile(&raw const (*entry).handed_out) != now {
            core::ptr::write_volatile(&raw mut (*entry).handed_out, now);
        }
        if tracking == Tracking::Never
            && core::ptr::read_volatile(&raw const (*entry).is_pinned) == 0
        {
            core::ptr::write_volatile(&raw mut (*entry).is_pinned, 1);
        }
    }

    Some(())
}

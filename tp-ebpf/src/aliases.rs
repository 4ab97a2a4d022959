//! The aliases that stand for real addresses: each session has a slice of them.
//!
//! The life cycle of an alias is drawn in `tp-core/src/alias.rs`. A program that removes an address
//! from `RESTING` owns its alias: one CPU, or else the root daemon, which frees it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};
use tp_ebpf_common::{
    ALIAS_TABLE_LEN, Address, AliasUse, Counter, FIRST_ALIAS_INDEX, SessionEntry,
};

use crate::{
    maps::{ALIAS_TABLES, ALIAS_USES, ALIASES, AliasUseWords, FREE, NEXT_ALIAS, RESTING, count},
    sessions::{self, Open},
};

/// Whether the kernel shows who still has an alias.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Tracking {
    /// Every socket that has it shows it as its peer.
    Peer,
    /// Nothing shows it, so the alias is never given to another address.
    Never,
}

/// Returns the index of the session's alias for `real`.
#[inline(always)]
pub(crate) fn alias_of(open: Open, real: &Address, tracking: Tracking) -> Result<u32, Counter> {
    let index = match known(open.slot, real) {
        Some(index) => index,
        None => match revive(open.slot, real) {
            Some(index) => index,
            None => allocate(open, real)?,
        },
    };
    note_use(open.slot, index, tracking).ok_or(Counter::AliasTableFull)?;

    Ok(index)
}

/// The IPv4 alias of this index, in network order.
#[inline(always)]
pub(crate) fn alias4(session: &SessionEntry, index: u32) -> [u8; 4] {
    (session.alias_base | index).to_be_bytes()
}

/// Returns the session and the real address behind `alias`, if it is one.
#[inline(always)]
pub(crate) fn real_of(alias: Address) -> Option<(Open, Address)> {
    let open = sessions::of_alias(alias)?;
    let index = index_of(alias, open.session)?;
    let entry = ALIAS_TABLES.get_value_ptr_mut(open.slot, &index)?;
    // SAFETY: a live element, which does not change while a socket has the alias.
    let real = unsafe { core::ptr::read_volatile(entry) };

    (!is_zero(&real)).then_some((open, real))
}

/// Whether datagrams were sent to this alias: it is pinned then.
#[inline(always)]
pub(crate) fn is_of_datagrams(open: Open, alias: Address) -> bool {
    let Some(entry) = index_of(alias, open.session).and_then(|index| use_of(open.slot, index))
    else {
        return false;
    };

    // SAFETY: an aligned word of a live element.
    unsafe { core::ptr::read_volatile(&raw const (*entry).is_pinned) != 0 }
}

/// The index of an alias of the session's range.
#[inline(always)]
fn index_of(alias: Address, session: &SessionEntry) -> Option<u32> {
    let index = u32::from(u16::from_be_bytes([alias[14], alias[15]]));

    (index < session.alias_count).then_some(index)
}

/// The alias in use for `real`.
#[inline(always)]
fn known(slot: u32, real: &Address) -> Option<u32> {
    let entry = ALIASES.get(slot)?.get_ptr(real)?;
    // SAFETY: the memory of entries is never given back while a program runs.
    let index = unsafe { core::ptr::read_volatile(entry) };

    leads_to(slot, index, real).then_some(index)
}

/// Returns whether the alias table has `real` at `index`. It has not if the kernel reused the memory
/// of a removed entry for another address while it was read.
#[inline(always)]
fn leads_to(slot: u32, index: u32, real: &Address) -> bool {
    let Some(entry) = ALIAS_TABLES.get_value_ptr_mut(slot, &index) else {
        return false;
    };
    // SAFETY: a live element.
    let found = unsafe { core::ptr::read_volatile(entry) };

    is_same(&found, real)
}

/// Brings an alias in quarantine back into use.
#[inline(always)]
fn revive(slot: u32, real: &Address) -> Option<u32> {
    let resting = RESTING.get(slot)?;
    let in_use = ALIASES.get(slot)?;
    let entry = resting.get_ptr(real)?;
    // SAFETY: as above.
    let index = unsafe { core::ptr::read_volatile(entry) };
    if !leads_to(slot, index, real) || resting.remove(real).is_err() {
        return None;
    }
    if in_use.insert(real, index, BPF_NOEXIST.into()).is_ok() {
        return Some(index);
    }
    // Another CPU took a new alias for the address; this one stays in quarantine.
    let _ = resting.insert(real, index, BPF_NOEXIST.into());

    known(slot, real)
}

#[inline(always)]
fn allocate(open: Open, real: &Address) -> Result<u32, Counter> {
    let slot = open.slot;
    let full = Counter::AliasTableFull;
    let free = FREE.get(slot).ok_or(full)?;
    let in_use = ALIASES.get(slot).ok_or(full)?;
    let index = match fresh(open) {
        Some(index) => index,
        None => free.pop().ok().flatten().ok_or(full)? & (ALIAS_TABLE_LEN as u32 - 1),
    };

    // The way back is published first: no socket ever sees an alias that cannot be reversed.
    let entry = ALIAS_TABLES.get_value_ptr_mut(slot, &index).ok_or(full)?;
    // SAFETY: a live element that nobody else has.
    unsafe { core::ptr::write_volatile(entry, *real) };
    if in_use.insert(real, index, BPF_NOEXIST.into()).is_ok() {
        count(slot, Counter::Aliases);
        return Ok(index);
    }

    // Another CPU was faster; its index stands, and nobody has seen ours.
    let _ = free.push(index, 0);

    known(slot, real).ok_or(full)
}

/// An alias that never stood for anything.
#[inline(always)]
fn fresh(open: Open) -> Option<u32> {
    let next = NEXT_ALIAS.get_value_ptr_mut(open.slot, &0)?;
    // Not relaxed: LLVM 22 then emits an addition that does not return the old value.
    // SAFETY: an aligned element of a live map; programs change it in this way only.
    let earlier = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(next, 1) };
    let taken = earlier + u64::from(FIRST_ALIAS_INDEX);
    let is_there = taken < u64::from(open.session.alias_count) && taken < ALIAS_TABLE_LEN as u64;

    is_there.then_some(taken as u32)
}

/// Notes the use for the root daemon, which quarantines the least recently used aliases.
#[inline(always)]
fn note_use(slot: u32, index: u32, tracking: Tracking) -> Option<()> {
    let entry = use_of(slot, index)?;
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

#[inline(always)]
fn use_of(slot: u32, index: u32) -> Option<*mut AliasUse> {
    ALIAS_USES
        .get_value_ptr_mut(slot, &index)
        .map(<*mut AliasUseWords>::cast)
}

/// Two words at a time; a comparison of arrays would be a call that this target lacks.
#[inline(always)]
fn is_same(a: &Address, b: &Address) -> bool {
    u128::from_ne_bytes(*a) == u128::from_ne_bytes(*b)
}

#[inline(always)]
fn is_zero(address: &Address) -> bool {
    u128::from_ne_bytes(*address) == 0
}

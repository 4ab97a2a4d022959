//! Who may send through the veth of a session, and who hears from it: a table by network, so that
//! more than aliases can pass once somebody may send to it.

use tp_ebpf_common::{ADDRESS_BITS, Address, Direction, GuardKey, GuardRule};

use crate::maps::{AlignedKey, GUARDS};

/// The rule for an address at the far end; nobody's packets pass without one.
#[inline(always)]
pub(crate) fn rule(slot: u32, direction: Direction, address: Address) -> Option<GuardRule> {
    let key = GuardKey {
        slot,
        direction: direction as u32,
        address,
    };
    let key = AlignedKey::new(GuardKey::FIXED_BITS + ADDRESS_BITS, key);
    let rule = *GUARDS.get(key.get())?;

    (rule == GuardRule::Steered as u32).then_some(GuardRule::Steered)
}

//! sk_lookup in the private namespace: every alias and port leads to the session's sockets.

use aya_ebpf::programs::SkLookupContext;
use tp_ebpf_common::{LISTENER_SLOT, UDP_SLOT};

use crate::maps::LISTENERS;

const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

#[inline(always)]
pub(crate) fn assign(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a live context.
    let (family, protocol) = unsafe { ((*lookup).family, (*lookup).protocol) };
    let slot = match (family, protocol) {
        (AF_INET, IPPROTO_TCP) => LISTENER_SLOT,
        (AF_INET, IPPROTO_UDP) => UDP_SLOT,
        _ => return SK_PASS,
    };
    // If that fails, the packet finds no socket and is answered with a reset.
    let _ = LISTENERS.redirect_sk_lookup(ctx, slot, 0);

    SK_PASS
}

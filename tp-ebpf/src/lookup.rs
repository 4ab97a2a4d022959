//! sk_lookup in the private namespaces: every alias and port leads to the session's sockets.

use aya_ebpf::programs::SkLookupContext;
use tp_ebpf_common::{LISTENER, SOCKETS_PER_SESSION, UDP_SOCKET};

use crate::{maps::SOCKETS, sessions};

const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

#[inline(always)]
pub(crate) fn assign(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a live context.
    let (family, protocol, interface) = unsafe {
        (
            (*lookup).family,
            (*lookup).protocol,
            (*lookup).ingress_ifindex,
        )
    };
    let socket = match (family, protocol) {
        (AF_INET, IPPROTO_TCP) => LISTENER,
        (AF_INET, IPPROTO_UDP) => UDP_SOCKET,
        _ => return SK_PASS,
    };
    if let Some(open) = sessions::of_interface(interface) {
        // Without a socket the packet finds nobody and is answered with a reset.
        let place = open.slot * SOCKETS_PER_SESSION + socket;
        let _ = SOCKETS.redirect_sk_lookup(ctx, place, 0);
    }

    SK_PASS
}

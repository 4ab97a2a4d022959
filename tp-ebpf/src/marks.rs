//! The marks of steered sockets.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get},
    programs::TcContext,
};
use tp_ebpf_common::Counter;

use crate::{
    maps::STEERED,
    packet::{Flow, TCP},
};

#[inline(always)]
pub(crate) fn set(socket: *mut bpf_sock) -> Result<(), Counter> {
    let mark = get(socket, BPF_SK_STORAGE_GET_F_CREATE.into());

    (!mark.is_null()).then_some(()).ok_or(Counter::NoMark)
}

/// Returns whether a socket has a mark; only a full socket can have one.
#[inline(always)]
pub(crate) fn is_on(socket: *mut bpf_sock) -> bool {
    !get(socket, 0).is_null()
}

#[inline(always)]
fn get(socket: *mut bpf_sock, flags: u64) -> *mut c_void {
    let map = (&raw const STEERED).cast_mut().cast();

    // SAFETY: a live map, and a socket that the verifier knows not to be null.
    unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags) }
}

/// The socket at this machine's end of a flow.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LocalEnd {
    Steered,
    Other,
    /// No socket, or the remainder of one in TIME_WAIT.
    Nobody,
}

/// Looks up the socket that would receive a packet of this flow.
#[inline(always)]
pub(crate) fn local_end(ctx: &TcContext, protocol: u8, flow: &Flow) -> LocalEnd {
    let tuple = (&raw const *flow).cast_mut().cast::<bpf_sock_tuple>();
    let len = size_of::<Flow>() as u32;
    let here = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: a live context; the length says that the tuple is the one of IPv4.
    let socket = unsafe {
        if protocol == TCP {
            bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, len, here, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), tuple, len, here, 0)
        }
    };
    if socket.is_null() {
        return LocalEnd::Nobody;
    }
    let is_steered = is_on(socket);
    // SAFETY: found above, and not used from here on.
    unsafe { bpf_sk_release(socket.cast()) };

    if is_steered {
        LocalEnd::Steered
    } else {
        LocalEnd::Other
    }
}

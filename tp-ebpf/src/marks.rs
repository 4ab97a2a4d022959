//! The marks of steered sockets.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get},
    programs::TcContext,
};
use tp_ebpf_common::{Counter, Mark};

use crate::{
    maps::STEERED,
    packet::{Flow, TCP},
};

/// Marks a socket as steered by the session with this id. Where four sessions have marked it, the one
/// that did so first makes room.
#[inline(always)]
pub(crate) fn set(socket: *mut bpf_sock, id: u32) -> Result<(), Counter> {
    let mark = get(socket, BPF_SK_STORAGE_GET_F_CREATE.into());
    if mark.is_null() {
        return Err(Counter::NoMark);
    }
    // SAFETY: live until the program ends. Two threads that send at once by one socket may lose
    // the mark of the earlier session, whose answers are then dropped.
    unsafe {
        if !has(mark, id) {
            let [a, b, c, _] = (*mark).sessions;
            (*mark).sessions = [id, a, b, c];
        }
    }

    Ok(())
}

/// Whether a session has steered the socket; one that is no full socket has no mark.
#[inline(always)]
pub(crate) fn is_by(socket: *mut bpf_sock, id: u32) -> bool {
    let mark = get(socket, 0);

    // SAFETY: as above.
    !mark.is_null() && unsafe { has(mark, id) }
}

/// Whether any session has steered the socket.
#[inline(always)]
pub(crate) fn is_on(socket: *mut bpf_sock) -> bool {
    !get(socket, 0).is_null()
}

#[inline(always)]
unsafe fn has(mark: *const Mark, id: u32) -> bool {
    // SAFETY: the caller's mark is live.
    let [a, b, c, d] = unsafe { (*mark).sessions };

    a == id || b == id || c == id || d == id
}

#[inline(always)]
fn get(socket: *mut bpf_sock, flags: u64) -> *mut Mark {
    let map = (&raw const STEERED).cast_mut().cast();

    // SAFETY: a live map, and a socket that the verifier knows not to be null.
    unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags) }.cast()
}

/// The socket at this machine's end of a flow.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LocalEnd {
    Steered,
    Other,
    /// No socket, or the remainder of one in TIME_WAIT.
    Nobody,
}

/// Looks up the socket that the stack would give a packet of this flow to, and whether the session
/// with this id has steered it.
#[inline(always)]
pub(crate) fn local_end(ctx: &TcContext, id: u32, protocol: u8, flow: &Flow) -> LocalEnd {
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
    let is_steered = is_by(socket, id);
    // SAFETY: found above, and not used from here on.
    unsafe { bpf_sk_release(socket.cast()) };

    if is_steered {
        LocalEnd::Steered
    } else {
        LocalEnd::Other
    }
}

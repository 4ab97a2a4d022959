//! connect, sendmsg, recvmsg and getpeername: real addresses become aliases and back.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_ktime_get_boot_ns, bpf_set_retval},
    programs::SockAddrContext,
};
use tp_ebpf_common::{Address, Counter, HEARTBEAT_STALE_AFTER_NS, mapped, session_flags, unmapped};

use crate::{
    aliases::{self, Tracking},
    maps::{HEARTBEATS, count, setting},
    marks, memory,
    owner::{self, Task},
    sessions::{Found, SocketTarget},
};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const EPERM: i32 = 1;
const ENETUNREACH: i32 = 101;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
pub(crate) const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;

/// Reads one field of the context, never merged with others: the verifier knows only loads of
/// whole fields.
macro_rules! read_field {
    ($ctx:expr, $field:ident $([$index:literal])?) => {{
        let context: *const aya_ebpf::bindings::bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passes a live context.
        unsafe { core::ptr::read_volatile(&raw const (*context).$field $([$index])?) }
    }};
}
macro_rules! write_field {
    ($ctx:expr, $field:ident $([$index:literal])?, $value:expr) => {{
        let context: *mut aya_ebpf::bindings::bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passes a live context whose destination this hook may write.
        unsafe { core::ptr::write_volatile(&raw mut (*context).$field $([$index])?, $value) }
    }};
}
pub(crate) use {read_field, write_field};

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Tcp,
    Udp,
    OtherStream,
    Other,
}

/// The call that a hook interrupts.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Call {
    Connect,
    Sendmsg,
}

/// Why a socket to a steered destination is not steered.
#[derive(Clone, Copy)]
enum Refusal {
    LeaveAlone(Counter),
    /// Without tp the destination is unreachable or does not answer: the call fails at once.
    Fail(Counter, i32),
}

impl From<Counter> for Refusal {
    #[inline(always)]
    fn from(reason: Counter) -> Self {
        Self::LeaveAlone(reason)
    }
}

/// An alias to use instead of a destination.
#[derive(Clone, Copy)]
struct Steered {
    slot: u32,
    alias: [u8; 4],
}

#[inline(always)]
pub(crate) fn forward4(ctx: &SockAddrContext, call: Call) -> i32 {
    let real = mapped(read_field!(ctx, user_ip4).to_ne_bytes());
    let steered = steer(ctx, call, real);
    if let Ok(Some(Steered { alias, .. })) = steered {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

/// Never called for a datagram to a mapped address: the kernel calls the hook of IPv4 for it.
#[inline(always)]
pub(crate) fn forward6(ctx: &SockAddrContext) -> i32 {
    let steered = steer(ctx, Call::Connect, address6(ctx));
    if let Ok(Some(Steered { alias, .. })) = steered {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

#[inline(always)]
pub(crate) fn reverse4(ctx: &SockAddrContext) {
    if !may_have_alias(ctx) {
        return;
    }
    if let Some(real) = real_of(ctx, mapped(read_field!(ctx, user_ip4).to_ne_bytes()))
        && let Some(real) = unmapped(real)
    {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(real));
    }
}

#[inline(always)]
pub(crate) fn reverse6(ctx: &SockAddrContext) {
    if !may_have_alias(ctx) {
        return;
    }
    let alias = address6(ctx);
    if unmapped(alias).is_none() {
        return;
    }
    if let Some(real) = real_of(ctx, alias)
        && let Some(real) = unmapped(real)
    {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(real));
    }
}

/// Returns whether the socket was steered: no other has asked for the address behind an alias.
///
/// For MPTCP the kernel calls the hook of connect(2), which marks, with the first subflow, and that of
/// getpeername(2) with the whole connection. That has an alias as its peer only at a client, because
/// the guard lets no connection in.
#[inline(always)]
fn may_have_alias(ctx: &SockAddrContext) -> bool {
    is_mptcp(ctx) || marks::is_on(socket(ctx))
}

#[inline(always)]
fn real_of(ctx: &SockAddrContext, alias: Address) -> Option<Address> {
    let (open, real) = aliases::real_of(alias)?;

    (is_mptcp(ctx) || marks::is_by(socket(ctx), open.id)).then_some(real)
}

#[inline(always)]
fn is_mptcp(ctx: &SockAddrContext) -> bool {
    read_field!(ctx, protocol) == IPPROTO_MPTCP
}

#[inline(always)]
fn verdict(steered: Result<Option<Steered>, (u32, Refusal)>) -> i32 {
    match steered {
        Ok(None) => ALLOW,
        Ok(Some(Steered { slot, .. })) => {
            count(slot, Counter::Steered);
            ALLOW
        }
        Err((slot, Refusal::LeaveAlone(reason))) => {
            count(slot, reason);
            ALLOW
        }
        Err((slot, Refusal::Fail(reason, errno))) => {
            count(slot, reason);
            // SAFETY: no preconditions. It needs Linux 6.1 in these hooks.
            unsafe { bpf_set_retval(-errno) };
            REFUSE
        }
    }
}

/// Decides on one destination: an alias to use, nothing to do, or the session that would steer it
/// otherwise, and the reason to leave it alone.
#[inline(always)]
fn steer(
    ctx: &SockAddrContext,
    call: Call,
    real: Address,
) -> Result<Option<Steered>, (u32, Refusal)> {
    if transport(ctx) == Transport::Other {
        return Ok(None);
    }
    let port = (read_field!(ctx, user_port) as u16).to_ne_bytes();
    let Some(target) = SocketTarget::find(ctx.sock_addr, real, port) else {
        return Ok(None);
    };
    if owner::is_exempt() {
        return Ok(None);
    }
    let Some(task) = Task::current() else {
        return Ok(None);
    };
    let found = match target.session_of(&task) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err((slot, reason)) => return Err((slot, reason.into())),
    };
    let slot = found.open.slot;

    match steer_by(ctx, call, &task, &real, &found) {
        Ok(alias) => Ok(Some(Steered { slot, alias })),
        Err(refusal) => Err((slot, refusal)),
    }
}

#[inline(always)]
fn steer_by(
    ctx: &SockAddrContext,
    call: Call,
    task: &Task,
    real: &Address,
    found: &Found,
) -> Result<[u8; 4], Refusal> {
    let open = found.open;
    task.check(open.session)?;
    if unmapped(*real).is_none() {
        return Err(Counter::Ipv6.into());
    }
    let carries_udp = open.session.flags & session_flags::UDP != 0;
    // Read again: what was read before would multiply the paths through the search.
    let transport = transport(ctx);
    let tracking = match transport {
        Transport::Tcp => Tracking::Peer,
        // An unconnected socket has no peer to show, and may read an answer at any time.
        Transport::Udp if found.is_name_server() || carries_udp => Tracking::Never,
        Transport::Udp => return Err(Counter::Udp.into()),
        Transport::OtherStream | Transport::Other => return Err(Counter::Protocol.into()),
    };
    // The machine's own name servers can be reached without tp, the cluster's networks cannot.
    let fail = |reason, errno| {
        if found.is_name_server() {
            Refusal::LeaveAlone(reason)
        } else {
            Refusal::Fail(reason, errno)
        }
    };
    // Read once: the verifier allows no pointer to a field of the context, and the compiler might keep
    // one instead.
    let socket = socket(ctx);
    match binding(ctx, socket, call, transport) {
        Binding::None => {}
        // The call fails by itself unless its destination is on this machine.
        Binding::Loopback => return Err(Counter::BoundAddress.into()),
        Binding::Device => return Err(fail(Counter::BoundDevice, ENETUNREACH)),
    }
    if found.is_name_server()
        && !session_is_alive(open.slot)
        && !(found.is_network() && transport != Transport::Udp)
    {
        return Err(Counter::StaleSession.into());
    }
    let index = aliases::alias_of(open, real, tracking).and_then(|index| {
        marks::set(socket, open.id)?;
        Ok(index)
    });

    index
        .map(|index| aliases::alias4(open.session, index))
        .map_err(|reason| fail(reason, EPERM))
}

/// The socket of the call, never null.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    let context: *const bpf_sock_addr = ctx.sock_addr;

    // SAFETY: the kernel passes a live context.
    unsafe { core::ptr::read_volatile(&raw const (*context).__bindgen_anon_1.sk) }
}

#[inline(always)]
fn transport(ctx: &SockAddrContext) -> Transport {
    match (read_field!(ctx, type_), read_field!(ctx, protocol)) {
        (SOCK_STREAM, IPPROTO_TCP) => Transport::Tcp,
        (SOCK_STREAM, _) => Transport::OtherStream,
        (SOCK_DGRAM, IPPROTO_UDP) => Transport::Udp,
        _ => Transport::Other,
    }
}

/// What keeps a socket, or a single datagram, from the aliases. The private namespace answers to
/// every other address of this machine.
#[derive(Clone, Copy, PartialEq)]
enum Binding {
    None,
    Loopback,
    Device,
}

#[inline(always)]
fn binding(
    ctx: &SockAddrContext,
    socket: *mut bpf_sock,
    call: Call,
    transport: Transport,
) -> Binding {
    // SAFETY: a socket that the verifier knows not to be null.
    let (bound, device) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*socket).src_ip4),
            core::ptr::read_volatile(&raw const (*socket).bound_dev_if),
        )
    };
    let source = match call {
        Call::Connect => bound,
        // The address of the socket, or of this datagram (IP_PKTINFO).
        Call::Sendmsg => read_field!(ctx, msg_src_ip4),
    };
    if device != 0 || (transport == Transport::Udp && has_interface(ctx, call)) {
        return Binding::Device;
    }
    if source.to_ne_bytes()[0] == 127 {
        return Binding::Loopback;
    }

    Binding::None
}

/// Returns whether a datagram has to leave by a certain interface (IP_UNICAST_IF, IP_PKTINFO), which
/// does not lead to the aliases. The context does not have it, the memory behind the context does.
#[inline(always)]
fn has_interface(ctx: &SockAddrContext, call: Call) -> bool {
    let hook = ctx.sock_addr as u64;
    let at = |base: Option<u64>, offset| memory::read::<u32>(base?, offset);
    let socket = memory::read::<u64>(hook, setting!(offsets.hook_socket));
    let of_socket = at(socket, setting!(offsets.socket_unicast_interface));
    let of_datagram = match call {
        Call::Connect => None,
        Call::Sendmsg => {
            let source = memory::read::<u64>(hook, setting!(offsets.hook_source));
            at(source, setting!(offsets.source_to_interface))
        }
    };

    of_socket.unwrap_or(0) != 0 || of_datagram.unwrap_or(0) != 0
}

#[inline(always)]
fn session_is_alive(slot: u32) -> bool {
    let Some(beat) = HEARTBEATS.get_value_ptr_mut(slot, &0) else {
        return false;
    };
    // SAFETY: an aligned word that the session writes.
    let beat = unsafe { core::ptr::read_volatile(beat) };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };

    now.abs_diff(beat) < HEARTBEAT_STALE_AFTER_NS
}

#[inline(always)]
pub(crate) fn address6(ctx: &SockAddrContext) -> Address {
    let [a, b, c, d] = read_field!(ctx, user_ip6[0]).to_ne_bytes();
    let [e, f, g, h] = read_field!(ctx, user_ip6[1]).to_ne_bytes();
    let [i, j, k, l] = read_field!(ctx, user_ip6[2]).to_ne_bytes();
    let [m, n, o, p] = read_field!(ctx, user_ip6[3]).to_ne_bytes();

    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

//! connect, sendmsg, recvmsg and getpeername: real addresses become aliases and back.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns, bpf_set_retval},
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use tp_ebpf_common::{Counter, HEARTBEAT_STALE_AFTER_NS, NameServer, SteerAction};

use crate::{
    aliases::{self, Tracking},
    maps::{HEARTBEAT, NAME_SERVERS, STEER4, STEER6, count, setting},
    marks, memory, owner,
};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const EPERM: i32 = 1;
const ENETUNREACH: i32 = 101;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;

/// Third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// Reads one field of the context, never merged with others: the verifier knows only loads of
/// whole fields.
macro_rules! read_field {
    ($ctx:expr, $field:ident $([$index:literal])?) => {{
        let context: *const bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passes a live context.
        unsafe { core::ptr::read_volatile(&raw const (*context).$field $([$index])?) }
    }};
}
macro_rules! write_field {
    ($ctx:expr, $field:ident $([$index:literal])?, $value:expr) => {{
        let context: *mut bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the kernel passes a live context whose destination this hook may write.
        unsafe { core::ptr::write_volatile(&raw mut (*context).$field $([$index])?, $value) }
    }};
}
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

#[inline(always)]
pub(crate) fn forward4(ctx: &SockAddrContext, call: Call) -> i32 {
    if !is_ours(ctx) {
        return ALLOW;
    }
    let real = read_field!(ctx, user_ip4).to_ne_bytes();
    let steered = steer(ctx, call, real);
    if let Ok(Some(alias)) = steered {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

/// Never called for a datagram to a mapped address: the kernel calls the hook of IPv4 for it.
#[inline(always)]
pub(crate) fn forward6(ctx: &SockAddrContext) -> i32 {
    if !is_ours(ctx) {
        return ALLOW;
    }
    let Some(real) = mapped(ctx) else {
        count_native6(ctx);
        return ALLOW;
    };
    let steered = steer(ctx, Call::Connect, real);
    if let Ok(Some(alias)) = steered {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

#[inline(always)]
pub(crate) fn reverse4(ctx: &SockAddrContext) {
    if !is_ours(ctx) || !may_see_real(ctx) {
        return;
    }
    if let Some(real) = aliases::real_of(read_field!(ctx, user_ip4).to_ne_bytes()) {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(real));
    }
}

#[inline(always)]
pub(crate) fn reverse6(ctx: &SockAddrContext) {
    if !is_ours(ctx) || !may_see_real(ctx) {
        return;
    }
    let Some(alias) = mapped(ctx) else {
        return;
    };
    if let Some(real) = aliases::real_of(alias) {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(real));
    }
}

/// Returns whether the socket was steered: no other has asked for the address behind an alias.
///
/// For MPTCP the kernel calls the hook of connect(2), which marks, with the first subflow, and that of
/// getpeername(2) with the whole connection. That has an alias as its peer only at a client, because
/// the guard lets no connection in.
#[inline(always)]
fn may_see_real(ctx: &SockAddrContext) -> bool {
    read_field!(ctx, protocol) == IPPROTO_MPTCP || marks::is_on(socket(ctx))
}

#[inline(always)]
fn verdict(steered: Result<Option<[u8; 4]>, Refusal>) -> i32 {
    match steered {
        Ok(None) => ALLOW,
        Ok(Some(_)) => {
            count(Counter::Steered);
            ALLOW
        }
        Err(Refusal::LeaveAlone(reason)) => {
            count(reason);
            ALLOW
        }
        Err(Refusal::Fail(reason, errno)) => {
            count(reason);
            // SAFETY: no preconditions. It needs Linux 6.1 in these hooks.
            unsafe { bpf_set_retval(-errno) };
            REFUSE
        }
    }
}

/// Decides on one destination: the alias to use, `None` if it is not steered, or the reason not to steer
/// this socket.
#[inline(always)]
fn steer(ctx: &SockAddrContext, call: Call, real: [u8; 4]) -> Result<Option<[u8; 4]>, Refusal> {
    let transport = transport(ctx);
    if transport == Transport::Other {
        return Ok(None);
    }
    let port = (read_field!(ctx, user_port) as u16).to_ne_bytes();
    let is_network = includes4(real);
    let is_name_server = is_name_server(NameServer::v4(real, port));
    if !is_network && !is_name_server {
        return Ok(None);
    }
    if owner::is_exempt() {
        return Ok(None);
    }
    owner::check_task()?;
    let tracking = match transport {
        Transport::Tcp => Tracking::Peer,
        // An unconnected socket has no peer to show, and may read an answer at any time.
        Transport::Udp if is_name_server => Tracking::Never,
        Transport::Udp => return Err(Counter::Udp.into()),
        Transport::OtherStream | Transport::Other => return Err(Counter::Protocol.into()),
    };
    // The machine's own name servers can be reached without tp, the cluster's networks cannot.
    let fail = |reason, errno| {
        if is_name_server {
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
    if is_name_server && !session_is_alive() && !(is_network && transport != Transport::Udp) {
        return Err(Counter::StaleSession.into());
    }
    let steered = aliases::alias_of(real, tracking).and_then(|alias| {
        marks::set(socket)?;
        Ok(alias)
    });

    steered.map(Some).map_err(|reason| fail(reason, EPERM))
}

#[inline(always)]
fn is_ours(ctx: &SockAddrContext) -> bool {
    // SAFETY: a live context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };

    cookie == setting!(netns_cookie)
}

/// The socket of the call, never null.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
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

#[inline(always)]
fn includes4(address: [u8; 4]) -> bool {
    STEER4.get(&Key::new(32, address)).copied() == Some(SteerAction::Include as u32)
}

#[inline(always)]
fn is_name_server(server: NameServer) -> bool {
    // SAFETY: only the presence of the entry is used.
    unsafe { NAME_SERVERS.get(&server) }.is_some()
}

/// A binding that keeps a socket, or a single datagram, from the aliases. The private namespace can
/// answer to every other address of this machine.
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
fn session_is_alive() -> bool {
    let Some(beat) = HEARTBEAT.get_ptr(0) else {
        return false;
    };
    // SAFETY: an aligned word that the session writes.
    let beat = unsafe { core::ptr::read_volatile(beat) };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };

    now.abs_diff(beat) < HEARTBEAT_STALE_AFTER_NS
}

#[inline(always)]
fn mapped(ctx: &SockAddrContext) -> Option<[u8; 4]> {
    let is_mapped = read_field!(ctx, user_ip6[0]) == 0
        && read_field!(ctx, user_ip6[1]) == 0
        && read_field!(ctx, user_ip6[2]) == MAPPED;

    is_mapped.then(|| read_field!(ctx, user_ip6[3]).to_ne_bytes())
}

#[inline(always)]
fn count_native6(ctx: &SockAddrContext) {
    let words = [
        read_field!(ctx, user_ip6[0]),
        read_field!(ctx, user_ip6[1]),
        read_field!(ctx, user_ip6[2]),
        read_field!(ctx, user_ip6[3]),
    ];
    let mut address = [0; 16];
    let mut at = 0;
    while at < 4 {
        let bytes = words[at].to_ne_bytes();
        address[at * 4] = bytes[0];
        address[at * 4 + 1] = bytes[1];
        address[at * 4 + 2] = bytes[2];
        address[at * 4 + 3] = bytes[3];
        at += 1;
    }
    let port = (read_field!(ctx, user_port) as u16).to_ne_bytes();
    let is_network =
        STEER6.get(&Key::new(128, address)).copied() == Some(SteerAction::Include as u32);
    if (is_network || is_name_server(NameServer::new(address, port)))
        && !owner::is_exempt()
        && owner::check_task().is_ok()
    {
        count(Counter::Ipv6);
    }
}

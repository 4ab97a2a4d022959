//! connect, sendmsg, recvmsg and getpeername: real addresses become aliases and back.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns},
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use tp_ebpf_common::{Counter, HEARTBEAT_LIMIT_NS, NameServer, SteerAction};

use crate::{
    aliases::{self, Tracking},
    maps::{HEARTBEAT, NAME_SERVERS, STEER4, STEER6, count, setting},
    owner,
};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

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
    /// Its socket may outlive the TCP connections that show its peer.
    Mptcp,
    Udp,
    OtherStream,
    Other,
}

#[inline(always)]
pub(crate) fn forward4(ctx: &SockAddrContext) -> i32 {
    if !is_ours(ctx) {
        return ALLOW;
    }
    let real = read_field!(ctx, user_ip4).to_ne_bytes();
    let steered = steer(ctx, real);
    if let Ok(Some(alias)) = steered {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

#[inline(always)]
pub(crate) fn forward6(ctx: &SockAddrContext) -> i32 {
    if !is_ours(ctx) {
        return ALLOW;
    }
    let Some(real) = mapped(ctx) else {
        count_native6(ctx);
        return ALLOW;
    };
    let steered = steer(ctx, real);
    if let Ok(Some(alias)) = steered {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(alias));
    }

    verdict(steered)
}

#[inline(always)]
pub(crate) fn reverse4(ctx: &SockAddrContext) {
    if !is_ours(ctx) {
        return;
    }
    if let Some(real) = aliases::real_of(read_field!(ctx, user_ip4).to_ne_bytes()) {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(real));
    }
}

#[inline(always)]
pub(crate) fn reverse6(ctx: &SockAddrContext) {
    if !is_ours(ctx) {
        return;
    }
    let Some(alias) = mapped(ctx) else {
        return;
    };
    if let Some(real) = aliases::real_of(alias) {
        write_field!(ctx, user_ip6[3], u32::from_ne_bytes(real));
    }
}

#[inline(always)]
fn verdict(steered: Result<Option<[u8; 4]>, Counter>) -> i32 {
    match steered {
        Ok(None) => ALLOW,
        Ok(Some(_)) => {
            count(Counter::Steered);
            ALLOW
        }
        Err(reason) => {
            count(reason);
            if reason == Counter::AliasTableFull {
                REFUSE
            } else {
                ALLOW
            }
        }
    }
}

/// Decides on one destination: an alias to use, nothing to do, or the reason to leave alone what
/// would be steered otherwise.
#[inline(always)]
fn steer(ctx: &SockAddrContext, real: [u8; 4]) -> Result<Option<[u8; 4]>, Counter> {
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
        Transport::Mptcp => Tracking::Never,
        Transport::Udp => return Err(Counter::Udp),
        Transport::OtherStream | Transport::Other => return Err(Counter::Protocol),
    };
    check_binding(ctx)?;
    if is_name_server && !session_is_alive() && !(is_network && transport != Transport::Udp) {
        return Err(Counter::StaleSession);
    }

    aliases::alias_of(real, tracking).map(Some)
}

#[inline(always)]
fn is_ours(ctx: &SockAddrContext) -> bool {
    // SAFETY: a live context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };

    cookie == setting!(netns_cookie)
}

#[inline(always)]
fn transport(ctx: &SockAddrContext) -> Transport {
    match (read_field!(ctx, type_), read_field!(ctx, protocol)) {
        (SOCK_STREAM, IPPROTO_TCP) => Transport::Tcp,
        (SOCK_STREAM, IPPROTO_MPTCP) => Transport::Mptcp,
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

/// A socket bound elsewhere cannot reach the aliases.
#[inline(always)]
fn check_binding(ctx: &SockAddrContext) -> Result<(), Counter> {
    let context: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: a live context; the kernel checks the socket pointer for null below.
    let socket = unsafe { (*context).__bindgen_anon_1.sk };
    if socket.is_null() {
        return Ok(());
    }
    // SAFETY: not null.
    let (source, device) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*socket).src_ip4),
            core::ptr::read_volatile(&raw const (*socket).bound_dev_if),
        )
    };
    if device != 0 {
        return Err(Counter::BoundDevice);
    }
    if source != 0 && source.to_ne_bytes() != setting!(host_address) {
        return Err(Counter::BoundAddress);
    }

    Ok(())
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

    now.abs_diff(beat) < HEARTBEAT_LIMIT_NS
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

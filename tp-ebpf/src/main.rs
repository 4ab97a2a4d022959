//! The eBPF programs of a machine: entry points only. Each asks a handler for a verdict, turns it
//! into the hook's return value and counts the reason.
//!
//! A program must not be named like its section.

#![no_std]
#![no_main]
// The target lacks compare-and-swap, so `AtomicU64` has no `fetch_add` although the kernel does.
#![expect(internal_features, reason = "atomic addition")]
#![feature(core_intrinsics)]

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    macros::{cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, TcContext},
};

use tp_ebpf_common::Counter;

use crate::{cgroup::Call, sessions::Open};

mod aliases;
mod cgroup;
mod clients;
mod guards;
mod lookup;
mod maps;
mod marks;
mod memory;
mod owner;
mod packet;
mod sessions;
mod tc;

/// The return value of sock_addr hooks that lets the call go on; 0 fails it with EPERM.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn tp_connect4(ctx: SockAddrContext) -> i32 {
    cgroup::forward4(&ctx, Call::Connect)
}

#[cgroup_sock_addr(connect6)]
pub fn tp_connect6(ctx: SockAddrContext) -> i32 {
    cgroup::forward6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn tp_sendmsg4(ctx: SockAddrContext) -> i32 {
    cgroup::forward4(&ctx, Call::Sendmsg)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn tp_sendmsg6(ctx: SockAddrContext) -> i32 {
    cgroup::forward6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn tp_recvmsg4(ctx: SockAddrContext) -> i32 {
    cgroup::reverse4(&ctx);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn tp_recvmsg6(ctx: SockAddrContext) -> i32 {
    cgroup::reverse6(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn tp_getpeername4(ctx: SockAddrContext) -> i32 {
    cgroup::reverse4(&ctx);
    clients::show4(&ctx);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn tp_getpeername6(ctx: SockAddrContext) -> i32 {
    cgroup::reverse6(&ctx);
    clients::show6(&ctx);
    ALLOW
}

/// Egress of the workstation's end of the veth: only steered sockets may use the aliases.
#[classifier]
pub fn tp_host_egress(ctx: TcContext) -> i32 {
    action(&ctx, tc::host_egress)
}

/// Ingress of the same end: only steered sockets receive from aliases.
#[classifier]
pub fn tp_host_ingress(ctx: TcContext) -> i32 {
    action(&ctx, tc::host_ingress)
}

/// Ingress of the inner end of the veth: a SYN is held, all else goes to the stack.
#[classifier]
pub fn tp_veth_ingress(ctx: TcContext) -> i32 {
    action(&ctx, tc::veth_ingress)
}

/// Ingress of the TUN: what the session wrote.
#[classifier]
pub fn tp_tun_ingress(ctx: TcContext) -> i32 {
    action(&ctx, tc::tun_ingress)
}

#[sk_lookup]
pub fn tp_lookup(ctx: SkLookupContext) -> u32 {
    lookup::assign(&ctx)
}

/// Drops what an interface of no session carries.
#[inline(always)]
fn action(
    ctx: &TcContext,
    decide: impl Fn(&TcContext, Open) -> Result<tc::Verdict, Counter>,
) -> i32 {
    // SAFETY: the kernel passes a live packet.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    let Some(open) = sessions::of_interface(interface) else {
        return TC_ACT_SHOT;
    };
    match decide(ctx, open) {
        Ok(tc::Verdict::Pass) => TC_ACT_OK,
        Ok(tc::Verdict::Redirected(action)) => action,
        Err(reason) => {
            maps::count(open.slot, reason);
            TC_ACT_SHOT
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL-compatible, because reading kernel memory is reserved to such programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Packets on the veth and on the TUN.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use tp_ebpf_common::Counter;

use crate::{
    aliases,
    maps::{count, setting},
    marks::{self, LocalEnd},
    packet::{ICMP, Packet, TCP, UDP},
};

pub(crate) enum Verdict {
    Pass,
    Redirected(i32),
}

/// Only steered sockets may send to the alias range. A connection begins with a SYN of such a socket;
/// so for SYNs and UDP the mark of the socket is checked, for other TCP only that this machine sent
/// it.
#[inline(always)]
pub(crate) fn host_egress(ctx: &TcContext) -> Result<Verdict, Counter> {
    let skb: *const __sk_buff = ctx.skb.skb;
    let packet = Packet::from_ethernet(ctx)?.ok_or(Counter::UnexpectedPacket)?;
    if !aliases::is_alias(packet.destination) {
        return Err(Counter::ForeignDestination);
    }
    // SAFETY: the kernel passes a live packet.
    if unsafe { (*skb).ingress_ifindex } != 0 {
        return Err(Counter::Forwarded);
    }
    match packet.protocol {
        TCP => {
            let flags = packet.tcp_flags()?;
            if flags.is_absurd() {
                return Err(Counter::Malformed);
            }
            // This machine accepts no connection from an alias.
            if flags.accepts() {
                return Err(Counter::UnexpectedPacket);
            }
            if flags.opens() {
                check_socket(ctx)?;
            }
        }
        UDP => check_socket(ctx)?,
        _ => return Err(Counter::UnexpectedPacket),
    }

    Ok(Verdict::Pass)
}

/// Packets out of the private namespace are for steered sockets only, whoever sent them: the session's
/// user has sockets there that send anything from any alias.
#[inline(always)]
pub(crate) fn host_ingress(ctx: &TcContext) -> Result<Verdict, Counter> {
    let packet = Packet::from_either(ctx)?;
    if !aliases::is_alias(packet.source) {
        return Err(Counter::ForeignSource);
    }
    let local_end = match packet.protocol {
        TCP => {
            let flags = packet.tcp_flags()?;
            // Only the workstation's end opens connections.
            if flags.opens() || flags.is_absurd() {
                return Err(Counter::ForbiddenReply);
            }
            match marks::local_end(ctx, TCP, &packet.flow()?) {
                // The stack answers with a reset, or ends the TIME_WAIT.
                LocalEnd::Nobody => LocalEnd::Steered,
                local_end => local_end,
            }
        }
        UDP => marks::local_end(ctx, UDP, &packet.flow()?),
        ICMP if packet.is_own_unreachable()? => {
            let (protocol, flow) = packet.refused_flow()?;
            marks::local_end(ctx, protocol, &flow)
        }
        _ => return Err(Counter::ForbiddenReply),
    };
    if local_end != LocalEnd::Steered {
        return Err(Counter::Unasked);
    }

    Ok(Verdict::Pass)
}

/// Holds a SYN: the session reads it from the TUN and dials before it is answered.
#[inline(always)]
pub(crate) fn veth_ingress(ctx: &TcContext) -> Result<Verdict, Counter> {
    let packet = Packet::from_ethernet(ctx)?.ok_or(Counter::UnexpectedPacket)?;
    match packet.protocol {
        TCP if packet.tcp_flags()?.opens() => {
            count(Counter::SynHeld);
            // SAFETY: no preconditions.
            let action = unsafe { bpf_redirect(setting!(tun_index), 0) };
            Ok(Verdict::Redirected(action as i32))
        }
        TCP | UDP => Ok(Verdict::Pass),
        _ => Err(Counter::UnexpectedPacket),
    }
}

/// An approved SYN goes to the listener; a refusal or a datagram goes to the workstation, whose guard
/// checks the receiving socket.
#[inline(always)]
pub(crate) fn tun_ingress(ctx: &TcContext) -> Result<Verdict, Counter> {
    let packet = Packet::from_ip(ctx)?;
    if packet.protocol == TCP && packet.tcp_flags()?.opens() {
        if aliases::is_alias(packet.source) {
            return Err(Counter::ForeignSource);
        }
        if !aliases::is_alias(packet.destination) {
            return Err(Counter::ForeignDestination);
        }
        count(Counter::SynApproved);
        return Ok(Verdict::Pass);
    }
    if !aliases::is_alias(packet.source) {
        return Err(Counter::ForeignSource);
    }
    if aliases::is_alias(packet.destination) {
        return Err(Counter::ForeignDestination);
    }
    let allowed = match packet.protocol {
        TCP => packet.tcp_flags()?.resets(),
        // No other UDP is steered.
        UDP => aliases::is_of_name_server(packet.source),
        ICMP => packet.is_own_unreachable()?,
        _ => false,
    };
    if !allowed {
        return Err(Counter::ForbiddenReply);
    }

    // SAFETY: no preconditions.
    let action = unsafe { bpf_redirect_peer(setting!(veth_index), 0) };
    Ok(Verdict::Redirected(action as i32))
}

#[inline(always)]
fn check_socket(ctx: &TcContext) -> Result<(), Counter> {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the kernel passes a live packet.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return Err(Counter::NoSocket);
    }

    marks::is_on(socket)
        .then_some(())
        .ok_or(Counter::ForeignSocket)
}

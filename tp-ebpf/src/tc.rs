//! Packets on the veth and on the TUN.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use tp_ebpf_common::{Counter, Direction, GuardRule, mapped};

use crate::{
    aliases, guards,
    maps::count,
    marks::{self, LocalEnd},
    packet::{ICMP, Packet, TCP, UDP},
    sessions::Open,
};

pub(crate) enum Verdict {
    Pass,
    Redirected(i32),
}

/// Only steered sockets may send to the alias range. A connection begins with a SYN of such a socket;
/// so for SYNs and UDP the mark of the socket is checked, for other TCP only that this machine sent
/// it.
#[inline(always)]
pub(crate) fn host_egress(ctx: &TcContext, open: Open) -> Result<Verdict, Counter> {
    let skb: *const __sk_buff = ctx.skb.skb;
    let packet = Packet::from_ethernet(ctx)?.ok_or(Counter::UnexpectedPacket)?;
    match to_cluster(open, &packet) {
        Some(GuardRule::Steered) => {}
        None => return Err(Counter::ForeignDestination),
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
                check_socket(ctx, open)?;
            }
        }
        UDP => check_socket(ctx, open)?,
        _ => return Err(Counter::UnexpectedPacket),
    }

    Ok(Verdict::Pass)
}

/// Packets out of the private namespace are for steered sockets only, whoever sent them: the session's
/// user has sockets there that send anything from any alias.
#[inline(always)]
pub(crate) fn host_ingress(ctx: &TcContext, open: Open) -> Result<Verdict, Counter> {
    let packet = Packet::from_either(ctx)?;
    match from_cluster(open, &packet) {
        Some(GuardRule::Steered) => {}
        None => return Err(Counter::ForeignSource),
    }
    let id = open.id;
    let local_end = match packet.protocol {
        TCP => {
            let flags = packet.tcp_flags()?;
            // Only the workstation's end opens connections.
            if flags.opens() || flags.is_absurd() {
                return Err(Counter::ForbiddenReply);
            }
            match marks::local_end(ctx, id, TCP, &packet.flow()?) {
                // The stack answers with a reset, or ends what is in TIME_WAIT.
                LocalEnd::Nobody => LocalEnd::Steered,
                local_end => local_end,
            }
        }
        UDP => marks::local_end(ctx, id, UDP, &packet.flow()?),
        ICMP if packet.is_own_unreachable()? => {
            let (protocol, flow) = packet.refused_flow()?;
            marks::local_end(ctx, id, protocol, &flow)
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
pub(crate) fn veth_ingress(ctx: &TcContext, open: Open) -> Result<Verdict, Counter> {
    let packet = Packet::from_ethernet(ctx)?.ok_or(Counter::UnexpectedPacket)?;
    match packet.protocol {
        TCP if packet.tcp_flags()?.opens() => {
            count(open.slot, Counter::SynHeld);
            // SAFETY: no preconditions.
            let action = unsafe { bpf_redirect(open.session.tun_index, 0) };
            Ok(Verdict::Redirected(action as i32))
        }
        TCP | UDP => Ok(Verdict::Pass),
        _ => Err(Counter::UnexpectedPacket),
    }
}

/// An approved SYN goes to the listener; a refusal or a datagram goes to the workstation, whose guard
/// checks the receiving socket.
#[inline(always)]
pub(crate) fn tun_ingress(ctx: &TcContext, open: Open) -> Result<Verdict, Counter> {
    let packet = Packet::from_ip(ctx)?;
    if packet.protocol == TCP && packet.tcp_flags()?.opens() {
        if from_cluster(open, &packet).is_some() {
            return Err(Counter::ForeignSource);
        }
        if to_cluster(open, &packet).is_none() {
            return Err(Counter::ForeignDestination);
        }
        count(open.slot, Counter::SynApproved);
        return Ok(Verdict::Pass);
    }
    if from_cluster(open, &packet).is_none() {
        return Err(Counter::ForeignSource);
    }
    if to_cluster(open, &packet).is_some() {
        return Err(Counter::ForeignDestination);
    }
    let allowed = match packet.protocol {
        TCP => packet.tcp_flags()?.resets(),
        UDP => aliases::is_of_datagrams(open, mapped(packet.source)),
        ICMP => packet.is_own_unreachable()?,
        _ => false,
    };
    if !allowed {
        return Err(Counter::ForbiddenReply);
    }

    // SAFETY: no preconditions.
    let action = unsafe { bpf_redirect_peer(open.session.veth_index, 0) };
    Ok(Verdict::Redirected(action as i32))
}

#[inline(always)]
fn to_cluster(open: Open, packet: &Packet<'_>) -> Option<GuardRule> {
    guards::rule(open.slot, Direction::ToCluster, mapped(packet.destination))
}

#[inline(always)]
fn from_cluster(open: Open, packet: &Packet<'_>) -> Option<GuardRule> {
    guards::rule(open.slot, Direction::FromCluster, mapped(packet.source))
}

#[inline(always)]
fn check_socket(ctx: &TcContext, open: Open) -> Result<(), Counter> {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the kernel passes a live packet.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return Err(Counter::NoSocket);
    }

    marks::is_by(socket, open.id)
        .then_some(())
        .ok_or(Counter::ForeignSocket)
}

//! Packets on the veth and on the TUN.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_ancestor_cgroup_id},
    programs::TcContext,
};
use tp_ebpf_common::{Counter, scope};

use crate::{
    aliases,
    maps::{count, setting},
    packet::{ICMP, Packet, TCP, UDP},
};

pub(crate) enum Verdict {
    Pass,
    Redirected(i32),
}

/// The alias range is private to the scope. A connection exists only because its SYN was in
/// scope; so SYN and UDP are checked against the socket, and of other TCP only that this machine
/// sent it.
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
            if flags.opens() {
                check_socket(ctx)?;
            }
        }
        UDP => check_socket(ctx)?,
        _ => return Err(Counter::UnexpectedPacket),
    }

    Ok(Verdict::Pass)
}

/// Holds a SYN: the session reads it from the TUN and dials before anybody answers it.
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

/// An approved SYN goes to the listener; a refusal or a datagram goes to the workstation.
#[inline(always)]
pub(crate) fn tun_ingress(ctx: &TcContext) -> Result<Verdict, Counter> {
    let packet = Packet::from_ip(ctx)?;
    if packet.protocol == TCP && packet.tcp_flags()?.opens() {
        if packet.source != setting!(host_address) || !aliases::is_alias(packet.destination) {
            return Err(Counter::ForeignSource);
        }
        count(Counter::SynApproved);
        return Ok(Verdict::Pass);
    }
    if !aliases::is_alias(packet.source) {
        return Err(Counter::ForeignSource);
    }
    if packet.destination != setting!(host_address) {
        return Err(Counter::ForeignDestination);
    }
    let allowed = match packet.protocol {
        TCP => packet.tcp_flags()?.resets(),
        UDP => true,
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
    // Without a socket the helper below answers 65534, which may be somebody's uid.
    // SAFETY: the kernel passes a live packet.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return Err(Counter::NoSocket);
    }
    if setting!(scope) & scope::USER != 0 && ctx.get_socket_uid() != setting!(uid) {
        return Err(Counter::ForeignUser);
    }
    if setting!(scope) & scope::CGROUP != 0 {
        // SAFETY: a live packet.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, setting!(cgroup_level) as i32) };
        if id != setting!(cgroup_id) {
            return Err(Counter::ForeignCgroup);
        }
    }

    Ok(())
}

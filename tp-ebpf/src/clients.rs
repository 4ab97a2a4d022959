//! getpeername and accept at a local process that a session connects to: the client in the cluster
//! instead of the session.
//!
//! The root daemon keeps the client with the session's socket, so it is found by that socket, which
//! must still be the other end of the connection, and nothing is left of it when the socket goes.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use tp_ebpf_common::{ShownClient, unmapped};

use crate::{
    cgroup::{IPPROTO_TCP, address6, read_field, socket, write_field},
    maps::{CLIENTS, setting},
    memory,
    owner::Task,
    sessions,
};

/// A state of TCP (include/net/tcp_states.h).
const LISTEN: u32 = 10;

/// The addresses of a segment of this family, as the kernel takes them.
#[repr(C)]
struct Segment<A> {
    source: A,
    destination: A,
    source_port: u16,
    destination_port: u16,
}

#[inline(always)]
pub(crate) fn show4(ctx: &SockAddrContext) {
    if read_field!(ctx, protocol) != IPPROTO_TCP {
        return;
    }
    let peer = read_field!(ctx, user_ip4);
    let (own, port) = own4(socket(ctx));
    // A session connects from the address that it connects to.
    if own != peer {
        return;
    }
    let segment = Segment {
        source: own,
        destination: peer,
        source_port: port,
        destination_port: read_field!(ctx, user_port) as u16,
    };
    if let Some(client) = client_of(ctx, &segment)
        && let Some(address) = unmapped(client.address)
    {
        write_field!(ctx, user_ip4, u32::from_ne_bytes(address));
        write_port(ctx, client.port);
    }
}

#[inline(always)]
pub(crate) fn show6(ctx: &SockAddrContext) {
    if read_field!(ctx, protocol) != IPPROTO_TCP {
        return;
    }
    let peer = address6(ctx);
    let (own, port) = own6(socket(ctx));
    if u128::from_ne_bytes(own) != u128::from_ne_bytes(peer) {
        return;
    }
    let destination_port = read_field!(ctx, user_port) as u16;
    // A socket of `[::]` that took a connection of IPv4, by whose addresses the other end is found.
    let mapped = unmapped(peer);
    let client = match mapped {
        Some(address) => client_of(
            ctx,
            &Segment {
                source: address,
                destination: address,
                source_port: port,
                destination_port,
            },
        ),
        None => client_of(
            ctx,
            &Segment {
                source: own,
                destination: peer,
                source_port: port,
                destination_port,
            },
        ),
    };
    if let Some(client) = client
        && unmapped(client.address).is_some() == mapped.is_some()
    {
        let [a, b, c, d] = words(client.address);
        write_field!(ctx, user_ip6[0], a);
        write_field!(ctx, user_ip6[1], b);
        write_field!(ctx, user_ip6[2], c);
        write_field!(ctx, user_ip6[3], d);
        write_port(ctx, client.port);
    }
}

#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: [u8; 2]) {
    write_field!(ctx, user_port, u32::from(u16::from_ne_bytes(port)));
}

/// The address and port of the socket, in network order.
#[inline(always)]
fn own4(socket: *mut bpf_sock) -> (u32, u16) {
    // SAFETY: a socket that the verifier knows not to be null.
    let (address, port) = unsafe {
        (
            ptr::read_volatile(&raw const (*socket).src_ip4),
            ptr::read_volatile(&raw const (*socket).src_port),
        )
    };

    (address, (port as u16).to_be())
}

#[inline(always)]
fn own6(socket: *mut bpf_sock) -> ([u8; 16], u16) {
    // SAFETY: as above.
    let (a, b, c, d, port) = unsafe {
        (
            ptr::read_volatile(&raw const (*socket).src_ip6[0]),
            ptr::read_volatile(&raw const (*socket).src_ip6[1]),
            ptr::read_volatile(&raw const (*socket).src_ip6[2]),
            ptr::read_volatile(&raw const (*socket).src_ip6[3]),
            ptr::read_volatile(&raw const (*socket).src_port),
        )
    };
    let [a, b, c, d] = [a, b, c, d].map(u32::to_ne_bytes);
    let address = [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ];

    (address, (port as u16).to_be())
}

#[inline(always)]
fn words(address: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;

    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// The client that the socket at the other end stands for, if this socket and the task that asks are
/// of the user of the session that made it.
#[inline(always)]
fn client_of<A>(ctx: &SockAddrContext, segment: &Segment<A>) -> Option<ShownClient> {
    let client = kept_with(ctx, segment)?;
    let open = sessions::open(client.slot)?;
    // SAFETY: a live context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    if open.id != client.session || open.session.netns != netns {
        return None;
    }
    let uid = open.session.uid;
    let task = Task::current()?;
    let is_own = task.uid == uid
        && task.check(open.session).is_ok()
        && owner_of_socket(ctx).is_some_and(|owner| owner == uid);

    is_own.then_some(client)
}

/// What the root daemon has kept with the socket that this segment would go to.
#[inline(always)]
fn kept_with<A>(ctx: &SockAddrContext, segment: &Segment<A>) -> Option<ShownClient> {
    let tuple = ptr::from_ref(segment).cast_mut().cast::<bpf_sock_tuple>();
    let len = size_of::<Segment<A>>() as u32;
    let here = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: a live context; the length tells the family of the tuple.
    let other = unsafe { bpf_sk_lookup_tcp(ctx.sock_addr.cast(), tuple, len, here, 0) };
    if other.is_null() {
        return None;
    }
    let map = (&raw const CLIENTS).cast_mut().cast();
    // SAFETY: a live map, and a socket that is not null.
    let client = unsafe { bpf_sk_storage_get(map, other.cast(), ptr::null_mut(), 0) };
    let client = client.cast::<ShownClient>();
    // SAFETY: found above, and not used once it is released.
    unsafe {
        let is_connected = ptr::read_volatile(&raw const (*other).state) != LISTEN;
        let client = (!client.is_null() && is_connected).then(|| *client);
        bpf_sk_release(other.cast());
        client
    }
}

/// Who accepted or made the socket.
#[inline(always)]
fn owner_of_socket(ctx: &SockAddrContext) -> Option<u32> {
    let hook = ctx.sock_addr as u64;
    let socket = memory::read::<u64>(hook, setting!(offsets.hook_socket))?;

    memory::read(socket, setting!(offsets.socket_uid))
}

//! Asks the kernel for TCP sockets of this network namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use tp_core::packet::FlowKey;
use tp_sock_diag::{
    AF_INET, AF_INET6, ALL_STATES, ANY_SOCKET, DiagMessage, End, INET_DIAG_SKV6ONLY, IPPROTO_TCP,
    SockDiag, SocketFilter, SocketId, SocketQuery, TCP_LISTEN, socket_id,
};

/// A socket, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSocketInfo {
    pub(super) uid: u32,
    pub(super) inode: u32,
}

/// The application's socket of a steered connection.
pub(super) fn socket_of(flow: FlowKey) -> io::Result<TcpSocketInfo> {
    let id = socket_id(flow.source, flow.destination);
    let found = SockDiag::open()?.find(&query(AF_INET, ALL_STATES, id), |socket| {
        // Without such a connection, the kernel looks for whoever listens.
        (socket.state() != TCP_LISTEN).then(|| TcpSocketInfo {
            uid: socket.uid(),
            inode: socket.inode(),
        })
    })?;

    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The inodes of the sockets that listen at this address; none if it is another machine's.
pub(super) fn listening(address: SocketAddr) -> io::Result<Vec<u32>> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    };
    // Only an address of this machine can be bound.
    if !address.ip().is_loopback() && UdpSocket::bind((address.ip(), 0)).is_err() {
        return Ok(Vec::new());
    }
    let mut id = ANY_SOCKET;
    id[..2].copy_from_slice(&address.port().to_be_bytes());
    let mut inodes = Vec::new();
    let diag = SockDiag::open()?;
    for family in [AF_INET, AF_INET6] {
        diag.list(&query(family, 1 << TCP_LISTEN, id), |socket| {
            if takes(&socket, address) {
                inodes.push(socket.inode());
            }
        })?;
    }

    Ok(inodes)
}

fn query(family: u8, states: u32, id: SocketId) -> SocketQuery {
    SocketQuery {
        family,
        protocol: IPPROTO_TCP,
        states,
        id,
        filter: SocketFilter::default(),
    }
}

/// Returns whether a connection to `address` may find this socket.
fn takes(socket: &DiagMessage<'_>, address: SocketAddr) -> bool {
    let Some(local) = socket.end(End::Own) else {
        return false;
    };
    let v6_only = socket.attribute(INET_DIAG_SKV6ONLY);
    let is_v6_only = v6_only.is_some_and(|it| it != [0]);
    let takes_ip = match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.is_ipv4(),
        IpAddr::V6(ip) if ip.is_unspecified() => address.is_ipv6() || !is_v6_only,
        ip => ip == address.ip(),
    };

    takes_ip && local.port() == address.port()
}
